"""The memory of the KV blocks."""

import torch
from torch import Tensor


class KVCache:
    """One `kv_2BKSC` tensor a layer (see `attention.backend`), allocated once and never moved."""

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
        shape = (2, num_blocks, num_kv_heads, block_size, head_dim)
        self.layers: list[Tensor] = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)
