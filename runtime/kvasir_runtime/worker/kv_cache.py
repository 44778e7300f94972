"""The memory of the KV blocks."""

import math
from typing import Final

import torch
from torch import Tensor

from kvasir_runtime import huge_pages

_EARLY_BYTES: Final = 1 << 30
"""How much is written once, and so truly taken from the system, before the first request. The blocks of a first prefill
of 4,096 tokens took 0.2 s of 6.4 otherwise; a second of it is what a start may take longer at most."""


class KVCache:
    """One `kv_2BKSC` tensor a layer (see `attention.backend`), allocated once and never moved while anything runs."""

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        num_kv_heads: int,
        block_size: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        self._shape = (2, num_blocks, num_kv_heads, block_size, head_dim)
        self._num_layers = num_layers
        self.dtype: Final = dtype
        self.device: Final = torch.device(device)
        self.layers: list[Tensor] = []
        self.allocate()

    def allocate(self) -> None:
        """Take the memory, all zeros; harmless when it is there."""
        if not self.layers:
            self.layers = [_zeros(self._shape, self.dtype, self.device) for _ in range(self._num_layers)]
            for layer in self.layers:
                layer[:, : _EARLY_BYTES * self._shape[1] // self.nbytes].zero_()

    def free(self) -> None:
        """Give the memory back; what was in it is lost. Harmless when it is gone."""
        self.layers = []

    @property
    def block_shape(self) -> tuple[int, int, int, int, int]:
        """What one block holds: layers, keys and values, KV heads, tokens, head dimension."""
        _, _, kv_heads, block_size, head_dim = self._shape
        return self._num_layers, 2, kv_heads, block_size, head_dim

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Blocks lie anywhere: with small pages nearly each of them would cost a walk of the page table."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(huge_pages.zeroed(math.prod(shape) * dtype.itemsize)).view(dtype).view(shape)
