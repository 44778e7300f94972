"""Gives the engine's memory back while nobody needs it, and takes it again.

| level | KV cache | host tier of it | weights | waking                                     |
|-------|----------|-----------------|---------|--------------------------------------------|
| 0     | kept     | kept            | kept    | -                                          |
| 1     | freed    | kept            | kept    | the cache is made anew, and is empty       |
| 2     | freed    | freed           | freed   | the weights are read from the folder again |

As in vLLM, but for where level 1 keeps the weights: on a CPU they are in host memory already.
"""

import ctypes
import gc
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from kvasir_runtime.config import EngineConfig
from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.worker.loader import load_model
from kvasir_runtime.worker.model_runner import ModelRunner


@dataclass(frozen=True)
class SleepChange:
    """What falling asleep or waking did to this process; `freed_bytes` is negative when it grew."""

    freed_bytes: int
    resident_bytes: int
    seconds: float


class Sleeper:
    """Of one runner. Nothing may run while the level changes or is not 0."""

    def __init__(self, runner: ModelRunner, config: EngineConfig, model_digest: str) -> None:
        self.level = 0
        self._runner = runner
        self._config = config
        self._digest = model_digest

    def set_level(self, level: int) -> SleepChange:
        """Free what the level does not keep, take back what it does; raises KvasirError when that cannot be done."""
        before, started = resident_bytes(), time.monotonic()
        self._free(level)
        self._take_back(level)
        self.level = level
        after = resident_bytes()
        return SleepChange(before - after, after, round(time.monotonic() - started, 3))

    def _free(self, level: int) -> None:
        if level >= 1:
            self._runner.kv_cache.free()
        if level >= 2:
            self._runner.replace_model(None)
            if self._runner.host_pool is not None:
                self._runner.host_pool.free()
        if level > self.level:
            gc.collect()
            _trim_heap()

    def _take_back(self, level: int) -> None:
        if level < 2 and not self._runner.has_model:
            model, digest = load_model(self._config, self._runner.lora)
            if digest != self._digest:
                msg = f"{self._config.model} holds other weights than when the process started"
                raise KvasirError(Cause.WEIGHTS_CORRUPT, msg, "start the process again to serve them")
            self._runner.replace_model(model)
        if level < 2 and self._runner.host_pool is not None:
            self._runner.host_pool.allocate()
        if level < 1:
            self._runner.kv_cache.allocate()


def resident_bytes() -> int:
    """Memory of this process that is really there."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _trim_heap() -> None:
    """Large tensors go back to the kernel by themselves, small ones only when glibc is asked, a GPU's when torch is."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
