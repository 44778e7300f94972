"""What the front end process and the engine process say to each other: plain dataclasses, encoded by `transport`.

Nothing here needs torch, msgspec or ZeroMQ, so that the engine can also be driven in one process.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from kvasir_runtime.sampling_params import SamplingParams


class FinishReason(StrEnum):
    """OpenAI's words, and two of our own for what never reaches a client as success."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


# From the front end to the engine


@dataclass(frozen=True)
class EngineRequest:
    """One prompt to continue. `arrival_time` is `time.monotonic()` of the same machine; lower `priority` runs first.

    `adapter_digest` and `cache_salt` are part of every block hash: KV computed under others is never reused. What is
    `background` runs when no other request wants the engine; its prompt's blocks are pinned for `pin_s` seconds.
    """

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    arrival_time: float
    priority: int = 0
    cache_salt: str = ""
    adapter: str = ""
    adapter_digest: str = ""
    background: bool = False
    pin_s: float = 0.0


@dataclass(frozen=True)
class AbortSequences:
    """End single continuations, given by their request and index; the others go on."""

    sequences: list[tuple[str, int]]


@dataclass(frozen=True)
class AbortRequests:
    request_ids: list[str]


@dataclass(frozen=True)
class ListPrefixes:
    """Ask for the hottest prefixes, at most `count` of them with `max_tokens` tokens in all."""

    call_id: int
    count: int
    max_tokens: int
    salted: bool = False


@dataclass(frozen=True)
class SetSleep:
    """Free memory (1: the KV cache, 2: the weights too) or, with 0, take it back. Only without work."""

    call_id: int
    level: int


@dataclass(frozen=True)
class SaveCache:
    """Write what is cached to files, for `timeout_s` at most. Only without work."""

    call_id: int
    timeout_s: float


@dataclass(frozen=True)
class ResetCache:
    """Forget all cached prefixes that no sequence uses, in every tier; files too, where `files` says so."""

    call_id: int
    files: bool = False


@dataclass(frozen=True)
class LoadAdapter:
    """Read an adapter from its folder; answered by `AdapterLoaded`. One that is known is only pinned or unpinned."""

    digest: str
    folder: str
    pinned: bool = False


@dataclass(frozen=True)
class UnloadAdapter:
    """Take no more requests for it; it is gone with the last one that runs."""

    digest: str


# From the engine to the front end


@dataclass(frozen=True)
class TokenLogprobs:
    """The chosen token's log-probability and rank (0 = most likely), and the `top` alternatives as (id, logprob)."""

    token_id: int
    logprob: float
    rank: int
    top: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class EngineOutput:
    """What one step added to one sequence. `index` tells apart the `n` continuations of a request.

    The last one of a sequence carries `finish_reason`; `stop_token_id` is the token that ended it, if one did.
    `cached_tokens` (prompt tokens taken from the prefix cache) is set on the first output, and `tier_tokens`, how many
    of them came from `host` memory and from `disk`, where there were any. `error` says why a request
    could not be served, `error_field` which of its fields is the reason; where `error_passes` it may be sent again.
    """

    request_id: str
    new_token_ids: list[int]
    index: int = 0
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    cached_tokens: int | None = None
    error: str = ""
    error_field: str = ""
    error_passes: bool = False
    tier_tokens: dict[str, int] | None = None


@dataclass(frozen=True)
class TierStats:
    """The tiers of the KV cache behind the device. Blocks, but for `…_tokens` and `…_files`; counters only grow."""

    host_total: int = 0
    host_cached: int = 0
    disk_cached: int = 0
    disk_bytes: int = 0
    disk_state: Literal["none", "on", "full", "failed"] = "none"
    host_hit_tokens: int = 0
    disk_hit_tokens: int = 0
    saved: int = 0
    loaded: int = 0
    written: int = 0
    read: int = 0
    dropped: int = 0
    corrupt_files: int = 0
    foreign_files: int = 0


@dataclass(frozen=True)
class EngineStats:
    """The engine's state after a step, for metrics and /admin/state. Counters only grow."""

    running: int = 0
    waiting: int = 0
    queued_tokens: int = 0
    blocks_total: int = 0
    blocks_active: int = 0
    blocks_cached: int = 0
    blocks_pinned: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    generation_tokens: int = 0
    warmup_tokens: int = 0
    steps: int = 0
    cache_value: float = 0.0
    tiers: TierStats = field(default_factory=TierStats)


@dataclass(frozen=True)
class StepOutputs:
    """All that one step has to tell. `outputs` may be empty: then it is a heartbeat of an idle engine."""

    outputs: list[EngineOutput]
    stats: EngineStats
    scheduled_at: dict[str, float] = field(default_factory=dict)
    """Requests that left the queue in this step, with the monotonic time at which they did."""


@dataclass(frozen=True)
class PrefixReport:
    """One prefix with its decayed hits; `cached_tokens` of its tokens are in the cache now."""

    token_ids: list[int]
    hits: float
    cached_tokens: int
    adapter: str
    adapter_digest: str
    cache_salt: str


@dataclass(frozen=True)
class PrefixesListed:
    """Answer to `ListPrefixes`."""

    call_id: int
    prefixes: list[PrefixReport]


@dataclass(frozen=True)
class SleepDone:
    """Answer to `SetSleep`; `error` when it could not be done. Bytes are those of the process in memory."""

    call_id: int
    level: int
    freed_bytes: int = 0
    resident_bytes: int = 0
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class CacheSaved:
    """Answer to `SaveCache`: how many blocks were written, and whether any are left."""

    call_id: int
    written: int
    complete: bool


@dataclass(frozen=True)
class CacheReset:
    """Answer to `ResetCache`: how many blocks of each tier were forgotten; `error` when it could not be done."""

    call_id: int
    blocks: dict[str, int]
    error: str = ""


@dataclass(frozen=True)
class AdapterLoaded:
    """`report` is empty, or a `FailureReport` as JSON: then the adapter takes no requests."""

    digest: str
    nbytes: int
    report: str = ""


@dataclass(frozen=True)
class AdapterUse:
    """Where an adapter is (`core.adapter_slots`) and what it takes in memory."""

    digest: str
    residency: Literal["disk", "loading", "host", "device"]
    nbytes: int


@dataclass(frozen=True)
class AdapterStates:
    """All adapters, after any of them moved. What is not listed is gone."""

    adapters: list[AdapterUse]


@dataclass(frozen=True)
class StartupProgress:
    """Sent while the engine loads: the phase's name, and how much of it is done (0..1)."""

    phase: str
    progress: float
    message: str = ""


@dataclass(frozen=True)
class EngineReady:
    """The engine can take requests."""

    max_model_len: int
    vocab_size: int
    block_size: int
    num_blocks: int
    weights_bytes: int
    kv_bytes_per_token: int
    model_digest: str
    dtype: str
    startup_seconds: dict[str, float]
    host_blocks: int = 0


@dataclass(frozen=True)
class EngineFailed:
    """The engine's last words: a `FailureReport` as JSON."""

    report: str


@dataclass(frozen=True)
class Heartbeat:
    """Sent every second by a thread of the engine process, also while a long step runs.

    `step_seconds` is the age of the step that runs now, 0 without one; `cpu_seconds` is the CPU time the process used
    so far: a step that grows old while it stands still is stuck.
    """

    step_seconds: float
    cpu_seconds: float


Call = ListPrefixes | SetSleep | SaveCache | ResetCache
"""Gets exactly one `Answer`, with the same `call_id`."""
Answer = PrefixesListed | SleepDone | CacheSaved | CacheReset

FromFrontEnd = EngineRequest | AbortRequests | AbortSequences | LoadAdapter | UnloadAdapter | Call
FromEngine = (
    AdapterLoaded | AdapterStates | StepOutputs | StartupProgress | EngineReady | EngineFailed | Heartbeat | Answer
)
