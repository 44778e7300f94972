"""What the operator port of a runtime answers: the models behind `/admin/state` and its siblings.

Numbers are tokens, blocks, bytes or seconds as named. Nothing an earlier process said may be trusted: `boot_id`
changes at every start.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class _Message(BaseModel):
    # A newer runtime may add fields: an older operator must still read the rest.
    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class Phase(StrEnum):
    """How far a process has come since its start."""

    STARTING = "Starting"
    LOADING = "Loading"
    WARMING = "Warming"
    SERVING = "Serving"
    DRAINING = "Draining"
    FAILED = "Failed"


class TierState(_Message):
    """What is kept of the KV cache in host memory and in files; hits are among those of `KVState`.

    `disk_state` is `none` without files, `full` when no more are written, `failed` when none are used any more.
    """

    host_blocks_total: int = 0
    host_blocks_cached: int = 0
    disk_blocks_cached: int = 0
    disk_bytes: int = 0
    disk_state: Literal["none", "on", "full", "failed"] = "none"
    host_hit_tokens: int = 0
    disk_hit_tokens: int = 0


class KVState(_Message):
    """The KV cache now; pinned blocks are among the active and cached ones. Blocks are the device's.

    `hit_tokens` came from any tier; `tiers` is None where the device's is the only one. `value` is the cache's worth:
    tokens it is expected to save, decayed over time.
    """

    block_size: int
    blocks_total: int
    blocks_active: int
    blocks_cached: int
    blocks_pinned: int = 0
    hit_tokens: int = 0
    query_tokens: int = 0
    value: float = 0.0
    tiers: TierState | None = None


class TokenState(_Message):
    """Work at hand and speed: prompt tokens not yet computed, and rates over the last seconds.

    `prefill_busy` is the share of those seconds that went into steps with prompts in them, 0..1.
    """

    queued: int = 0
    prefill_per_s: float = 0.0
    prefill_busy: float | None = None
    decode_per_s: float = 0.0


class LatencyState(_Message):
    """Time to first token over the last minute, in seconds; None without requests."""

    ttft_p50: float | None = None
    ttft_p95: float | None = None


class AnswerState(_Message):
    """Requests for text over the last minute, by how they ended.

    `failed` ones got an error that is the server's (status 5xx, or an error in the stream). Requests that were at fault
    themselves, that gave up, or that came while the server loads, drains or sleeps are in neither.
    """

    answered: int = 0
    failed: int = 0


class StartupState(_Message):
    """Where a start-up stands: the phase, what each phase took so far in seconds, and progress 0..1 in this one."""

    phase: Phase = Phase.STARTING
    seconds: dict[str, float] = Field(default_factory=dict)
    progress: float = 0.0
    message: str = ""


class CapacityState(_Message):
    """What the engine really allocated; `max_adapters` are those that memory holds at the same time, 0 without LoRA."""

    weights_bytes: int = 0
    kv_bytes_per_token: int = 0
    kv_tokens: int = 0
    max_concurrent_sequences: int = 0
    max_model_len: int = 0
    max_adapters: int = 0


class AdapterState(_Message):
    """One version of an adapter that is there, or on its way.

    On `device` it has a slot of a batch, on `host` it is in memory, on `disk` it is read when it is asked for.
    `refs` counts requests in flight, `demand` those that came for its name, halved every 10 minutes. An older version
    whose requests still run has a row of its own.
    """

    name: str
    digest: str
    residency: Literal["device", "host", "disk", "loading", "failed"]
    refs: int = 0
    demand: float = 0.0
    bytes: int = 0
    message: str = ""


class WantedAdapter(_Message):
    """An adapter to serve: its files, and the digest they must have where that is known.

    `uri` is `file:///path` (or `/path`) below one of --lora-roots, or of one of --lora-schemes. A pinned adapter keeps
    its slot once it has one. The digest is what `sha256sum adapter_config.json adapter_model.safetensors | sha256sum`
    prints. `version` is any text: when another one comes, the source is looked at again. `secret` names the folder
    below --lora-secrets that holds the source's credentials.
    """

    name: str = Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9]([A-Za-z0-9._:/-]*[A-Za-z0-9])?$")
    uri: str = Field(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f\x7f]+$")
    digest: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    pinned: bool = False
    version: str = Field(default="", max_length=256)
    secret: str = Field(default="", max_length=253, pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$")

    @field_validator("uri")
    @classmethod
    def _can_be_split(cls, uri: str) -> str:
        try:
            urlsplit(uri)
        except ValueError as error:
            msg = f"must be a URI or an absolute path: {error}, got {uri!r}"
            raise ValueError(msg) from None
        return uri


class AdapterSet(_Message):
    """`PUT /admin/adapters`: all adapters that are to be served. What is not among them is unloaded.

    The same set again changes nothing, but what has failed is tried again. `tag` is any text that names the set: the
    reports repeat it, so that whoever asked knows what a process was told.
    """

    adapters: list[WantedAdapter] = Field(max_length=4096)
    tag: str = Field(default="", max_length=256)


class AdapterReport(_Message):
    """How one wanted adapter fares. `digest` is the version that new requests get; "" while there is none.

    While `state` is `loading` or `failed` an earlier version may go on serving. `failures` counts attempts that failed
    in a row, the last of them `failed_for_s` seconds ago.
    """

    name: str
    uri: str
    state: Literal["loading", "loaded", "failed"]
    digest: str = ""
    pinned: bool = False
    cause: str = ""
    message: str = ""
    remedy: str = ""
    failures: int = 0
    failed_for_s: float = 0.0


class AdapterReports(_Message):
    """Answer to `PUT` and `GET /admin/adapters`: the wanted set as it fares, and every version that is in memory."""

    boot_id: str
    tag: str = ""
    adapters: list[AdapterReport]
    versions: list[AdapterState] = Field(default_factory=list)


class AdminState(_Message):
    """`GET /admin/state`. Token ids mean the same text where `tokenizer_digest` is the same; empty: not known yet."""

    boot_id: str
    model_digest: str
    tokenizer_digest: str = ""
    revision: str
    draining: bool
    inflight: int
    waiting: int
    running: int
    kv: KVState | None = None
    tokens: TokenState = Field(default_factory=TokenState)
    latency: LatencyState = Field(default_factory=LatencyState)
    answers: AnswerState | None = None
    adapters: list[AdapterState] = Field(default_factory=list)
    startup: StartupState = Field(default_factory=StartupState)
    capacity: CapacityState | None = None
    sleep_level: int = 0


class DrainRequest(_Message):
    """`POST /admin/drain`: stop taking work; what runs may go on for `timeout_s`, then it is cut."""

    timeout_s: float | None = Field(default=None, ge=0)


class DrainState(_Message):
    """Answer of `/admin/drain` and `/admin/undrain`."""

    draining: bool
    inflight: int


class LivenessState(_Message):
    """`GET /livez` (200 alive, 503 dead): seconds since the engine last finished a step or said it had no work."""

    alive: bool
    heartbeat_age_s: float
    message: str = ""


class ReadinessState(_Message):
    """`GET /readyz` and `/startupz` (200 or 503)."""

    ready: bool
    reason: str = ""
    startup: StartupState = Field(default_factory=StartupState)


MAX_WARMUP_PROMPTS = 1024
MAX_LISTED_PREFIXES = 1024
MAX_LISTED_TOKENS = 1_048_576


class WarmupPrompt(_Message):
    """One prefix to compute beforehand: exactly one of `text`, `token_ids` and `messages`.

    Messages are the beginning of conversations, such as a system prompt, and go through the model's chat template.
    `adapter` and `cache_salt` must be those of the requests that shall find it.
    """

    text: str | None = None
    token_ids: list[Annotated[int, Field(ge=0)]] | None = None
    messages: list[dict[str, Any]] | None = None
    adapter: str = ""
    cache_salt: str = Field(default="", max_length=256)

    @model_validator(mode="after")
    def _has_one_source(self) -> "WarmupPrompt":
        if sum(map(bool, (self.text, self.token_ids, self.messages))) != 1:
            raise ValueError("exactly one of text, token_ids and messages must be given and not empty")
        return self


class WarmupRequest(_Message):
    """`POST /admin/warmup`: compute prefixes in the given order whenever no user's request wants the engine.

    It ends after the last prompt, in the middle of the one that would compute more than `max_tokens` in all, or after
    `timeout_s`. What was computed stays pinned in the prefix cache for `pin_s` seconds (0: not at all), in at most
    half of its blocks, and gives way when requests need the room.
    """

    prompts: list[WarmupPrompt] = Field(min_length=1, max_length=MAX_WARMUP_PROMPTS)
    max_tokens: int = Field(default=65_536, ge=1)
    timeout_s: float = Field(default=120.0, gt=0, le=3600)
    pin_s: float = Field(default=600.0, ge=0, le=86_400)


class WarmupEnd(StrEnum):
    """Why a warmup ended."""

    DONE = "done"
    TOKEN_BUDGET = "token_budget"  # noqa: S105 - a budget, not a secret
    TIME_BUDGET = "time_budget"


class WarmupState(_Message):
    """Answer of `/admin/warmup`. Counts are of prompts and of their tokens.

    `cached_tokens` were in the cache already; `refused` says why a prompt could not be taken, by its position.
    `boot_id` is that of the process that computed them.
    """

    boot_id: str = ""
    ended: WarmupEnd
    prompts: int
    computed_tokens: int
    cached_tokens: int
    pinned_tokens: int
    seconds: float
    refused: dict[int, str] = Field(default_factory=dict)


class Prefix(_Message):
    """The beginning of prompts that several requests had in common: whole KV blocks, as token ids.

    `hits` counts the requests that began with it after the first one, halved every 10 minutes; `bytes` is the size of
    its KV, and `cached_tokens` how many of its tokens the cache still holds. `cache_salt` is that of its requests.
    """

    token_ids: list[int]
    hits: float
    bytes: int
    cached_tokens: int
    adapter: str = ""
    adapter_digest: str = ""
    cache_salt: str = ""


class PrefixList(_Message):
    """Answer of `GET /admin/prefixes`: the hottest first, no more of them and of their tokens than was asked for."""

    prefixes: list[Prefix]


class SleepRequest(_Message):
    """`POST /admin/sleep`: take no more work, let what runs finish within `timeout_s` (then it is cut), free memory.

    Level 1 frees the KV cache; level 2 the weights as well, so that waking loads them again.
    """

    level: Literal[1, 2] = 1
    timeout_s: float | None = Field(default=None, ge=0)


class SleepState(_Message):
    """Answer of `/admin/sleep` and `/admin/wake`. `sleep_level` 0 is awake; bytes are the engine process's own.

    `freed_bytes` is what its resident memory shrank by, and `seconds` what falling asleep or waking took.
    """

    sleep_level: int
    freed_bytes: int = 0
    resident_bytes: int = 0
    seconds: float = 0.0


class ResetRequest(_Message):
    """`POST /admin/reset_prefix_cache`: forget every cached prefix that no running sequence uses.

    Device and host memory always; with `files` this engine's files as well.
    """

    files: bool = False


class ResetState(_Message):
    """Answer of `/admin/reset_prefix_cache`: how many blocks were forgotten, by tier."""

    blocks: dict[str, int]
