"""Root mean square normalisation. Source: arXiv 1910.07467."""

import torch
from torch import Tensor


class RMSNorm:
    """Normalises the last dimension. `offset` is added to the weight (1 in Gemma, whose weights are stored less 1)."""

    def __init__(self, weight: Tensor, eps: float, offset: float = 0.0) -> None:
        self.weight = weight.float() + offset
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale * self.weight).to(x.dtype)

    def add_and_norm(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """`residual + x` and its norm, as (norm, sum)."""
        total = residual + x
        return self(total), total
