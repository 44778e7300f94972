"""What the operator port of a runtime answers: the models behind `/admin/state` and its siblings.

Numbers are tokens, blocks, bytes or seconds as named. Nothing an earlier process said may be trusted: `boot_id`
changes at every start.
"""

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


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


class KVState(_Message):
    """The KV cache now. `value` is the cache's worth: tokens it is expected to save, decayed over time."""

    block_size: int
    blocks_total: int
    blocks_active: int
    blocks_cached: int
    hit_tokens: int = 0
    query_tokens: int = 0
    value: float = 0.0


class TokenState(_Message):
    """Work at hand and speed: prompt tokens not yet computed, and rates over the last seconds."""

    queued: int = 0
    prefill_per_s: float = 0.0
    decode_per_s: float = 0.0


class LatencyState(_Message):
    """Time to first token over the last minute, in seconds; None without requests."""

    ttft_p50: float | None = None
    ttft_p95: float | None = None


class StartupState(_Message):
    """Where a start-up stands: the phase, what each phase took so far in seconds, and progress 0..1 in this one."""

    phase: Phase = Phase.STARTING
    seconds: dict[str, float] = Field(default_factory=dict)
    progress: float = 0.0
    message: str = ""


class CapacityState(_Message):
    """What the engine really allocated."""

    weights_bytes: int = 0
    kv_bytes_per_token: int = 0
    kv_tokens: int = 0
    max_concurrent_sequences: int = 0
    max_model_len: int = 0


class AdapterState(_Message):
    name: str
    digest: str
    residency: Literal["device", "host", "loading", "failed"]
    refs: int = 0
    bytes: int = 0
    message: str = ""


class AdminState(_Message):
    """`GET /admin/state`."""

    boot_id: str
    model_digest: str
    revision: str
    draining: bool
    inflight: int
    waiting: int
    running: int
    kv: KVState | None = None
    tokens: TokenState = Field(default_factory=TokenState)
    latency: LatencyState = Field(default_factory=LatencyState)
    adapters: list[AdapterState] = Field(default_factory=list)
    startup: StartupState = Field(default_factory=StartupState)
    capacity: CapacityState | None = None


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
