"""Small operations that a device may have in fused form, behind one interface.

Shape suffixes: R rows, F features, D hidden size.
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional


class Ops(Protocol):
    """Operations of one kind of device."""

    def rms_norm(self, x_RD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """`x / rms(x) * weight`, computed in float32. Source: arXiv 1910.07467."""

    def add_rms_norm(self, x_RD: Tensor, residual_RD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """The norm of `residual + x`, and that sum, which may take the place of `residual_RD`."""

    def silu_and_mul(self, x_RF: Tensor) -> Tensor:
        """The first half of the features, activated, times the second: `[R, F / 2]`."""

    def gelu_tanh_and_mul(self, x_RF: Tensor) -> Tensor:
        """As `silu_and_mul`, with GELU in its tanh form."""


class TorchOps:
    """Plain torch, on any device; the oracle of the others."""

    def rms_norm(self, x_RD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        wide = x_RD.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return (wide * scale * weight_D).to(x_RD.dtype)

    def add_rms_norm(self, x_RD: Tensor, residual_RD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        total = residual_RD + x_RD
        return self.rms_norm(total, weight_D, eps), total

    def silu_and_mul(self, x_RF: Tensor) -> Tensor:
        gate, up = x_RF.chunk(2, dim=-1)
        return functional.silu(gate) * up

    def gelu_tanh_and_mul(self, x_RF: Tensor) -> Tensor:
        gate, up = x_RF.chunk(2, dim=-1)
        return functional.gelu(gate, approximate="tanh") * up
