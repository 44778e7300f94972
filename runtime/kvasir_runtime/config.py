"""What the engine works with once the arguments are resolved: plain values, nothing automatic left.

Dataclasses and not pydantic, so that engine, worker and kernels run where only torch is installed.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class DiskConfig:
    """Files of KV blocks, of at most `size` bytes. `salted`: those of requests with a cache salt too."""

    folder: Path
    size: int
    salted: bool = False


@dataclass(frozen=True)
class CacheConfig:
    """KV cache: `memory` in bytes, None to take what `utilization` of the device's memory leaves.

    What the device evicts goes to `host_memory` bytes, 0 for none, and from there to `disk`.
    """

    block_size: int = 16
    dtype: str = "auto"
    memory: int | None = None
    utilization: float = 0.9
    prefix_caching: bool = True
    eviction_policy: Literal["lru", "lfu"] = "lru"
    host_memory: int = 0
    disk: DiskConfig | None = None


@dataclass(frozen=True)
class SchedulerConfig:
    max_num_seqs: int = 128
    max_num_batched_tokens: int = 2048
    policy: Literal["fcfs", "priority"] = "fcfs"
    prefer_prefill: bool = False


@dataclass(frozen=True)
class AdapterConfig:
    """LoRA: how many adapters may take part in a batch, how many are kept in memory, and their largest rank."""

    max_loras: int = 4
    max_cpu_loras: int | None = None
    max_rank: int = 16


@dataclass(frozen=True)
class EngineConfig:
    """One engine. `dtype`, `quantization` and `device` may be `auto`: the engine resolves them at start."""

    model: Path
    dtype: str = "auto"
    quantization: str = "auto"
    device: str = "auto"
    max_model_len: int | None = None
    tensor_parallel_size: int = 1
    num_threads: int | None = None
    seed: int = 0
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    adapters: AdapterConfig | None = None
