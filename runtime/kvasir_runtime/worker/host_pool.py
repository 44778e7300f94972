"""Host memory for KV blocks that the device evicts: whole blocks, all layers of one together, copied back and forth.

Shape suffixes: N slots of host memory, n those of one portion, L layers, and of a block 2KSC (see `attention.backend`).
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from kvasir_runtime import huge_pages
from kvasir_runtime.worker.kv_cache import KVCache

_PORTION_BYTES: Final = 16 << 20
"""Copied at a time: so much lies on the device twice. Eight blocks of a model of 8 B parameters."""


class HostPool:
    """`num_slots` slots, each of which holds what a block of `kv_cache` holds in all layers, bit by bit.

    On a GPU the memory is pinned and copies are queued on the current stream: after what was queued before, and before
    what comes then. Who looks at the memory itself waits for them (`wait`), or for a step's tokens. On a CPU they are
    done when the call returns; memory that was never saved to is not taken from the system.
    """

    def __init__(self, kv_cache: KVCache, num_slots: int) -> None:
        self.num_slots: Final = num_slots
        self._kv_cache = kv_cache
        self._shape = (num_slots, *kv_cache.block_shape)
        self._host_NL2KSC = torch.empty(0)
        self.allocate()

    @property
    def slot_bytes(self) -> int:
        return math.prod(self._shape[1:]) * self._kv_cache.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self._host_NL2KSC.nbytes

    def allocate(self) -> None:
        """Take the memory; harmless when it is there."""
        if self._host_NL2KSC.numel():
            return
        dtype = self._kv_cache.dtype
        if self._kv_cache.device.type == "cpu":
            memory = huge_pages.zeroed(math.prod(self._shape) * dtype.itemsize)
            self._host_NL2KSC = torch.from_numpy(memory).view(dtype).view(self._shape)
        else:
            self._host_NL2KSC = torch.empty(self._shape, dtype=dtype, pin_memory=True)

    def free(self) -> None:
        """Give the memory back; what was in it is lost."""
        self._host_NL2KSC = torch.empty(0)

    def slot(self, number: int) -> memoryview:
        """The bytes of a slot, to read and to write."""
        view: Any = self._host_NL2KSC[number].flatten().view(torch.uint8).numpy()
        return memoryview(view)

    def copy(self, saves: Sequence[tuple[int, int]], loads: Sequence[tuple[int, int]]) -> None:
        """Copy blocks to slots (block, slot), all of them, then slots to blocks (slot, block)."""
        portion = max(1, _PORTION_BYTES // self.slot_bytes)
        for pairs in _portions(saves, portion):
            self._save(*pairs)
        for pairs in _portions(loads, portion):
            self._load(*pairs)

    def wait(self) -> None:
        """Return when all copies are done."""
        if self._kv_cache.device.type == "cuda":
            torch.cuda.current_stream(self._kv_cache.device).synchronize()

    def _save(self, blocks: list[int], slots: list[int]) -> None:
        blocks_n = self._indices(blocks)
        gathered = [layer.index_select(1, blocks_n) for layer in self._kv_cache.layers]
        staged_nL2KSC = torch.stack([each_2nKSC.transpose(0, 1) for each_2nKSC in gathered], dim=1)
        for row, slot in enumerate(slots):
            self._host_NL2KSC[slot].copy_(staged_nL2KSC[row], non_blocking=True)

    def _load(self, slots: list[int], blocks: list[int]) -> None:
        device = self._kv_cache.device
        staged_nL2KSC = torch.empty((len(slots), *self._shape[1:]), dtype=self._kv_cache.dtype, device=device)
        for row, slot in enumerate(slots):
            staged_nL2KSC[row].copy_(self._host_NL2KSC[slot], non_blocking=True)
        blocks_n = self._indices(blocks)
        for number, layer in enumerate(self._kv_cache.layers):
            layer.index_copy_(1, blocks_n, staged_nL2KSC[:, number].transpose(0, 1))

    def _indices(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self._kv_cache.device)


def _portions(pairs: Sequence[tuple[int, int]], size: int) -> list[tuple[list[int], list[int]]]:
    return [
        ([source for source, _ in pairs[start : start + size]], [target for _, target in pairs[start : start + size]])
        for start in range(0, len(pairs), size)
    ]
