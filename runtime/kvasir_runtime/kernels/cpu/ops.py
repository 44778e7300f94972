"""The small operations of `layers.ops` by the C++ kernels."""

import torch
from torch import Tensor

from kvasir_runtime.kernels.cpu.library import Library
from kvasir_runtime.layers.ops import TorchOps


class CpuOps(TorchOps):
    """float32 and bfloat16 go to the kernels, the rest to torch."""

    def __init__(self, library: Library) -> None:
        self._library = library

    def rms_norm(self, x_RD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        if not is_known(x_RD):
            return super().rms_norm(x_RD, weight_D, eps)
        x_RD = x_RD.contiguous()
        out_RD = torch.empty_like(x_RD)
        self._norm(x_RD, None, weight_D, out_RD, eps)
        return out_RD

    def add_rms_norm(self, x_RD: Tensor, residual_RD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        if not (is_known(x_RD) and x_RD.is_contiguous() and residual_RD.is_contiguous()):
            return super().add_rms_norm(x_RD, residual_RD, weight_D, eps)
        out_RD = torch.empty_like(x_RD)
        self._norm(x_RD, residual_RD, weight_D, out_RD, eps)
        return out_RD, residual_RD

    def silu_and_mul(self, x_RF: Tensor) -> Tensor:
        if not (is_known(x_RF) and x_RF.is_contiguous()):
            return super().silu_and_mul(x_RF)
        rows, features = x_RF.shape[0], x_RF.shape[1] // 2
        out_RF = x_RF.new_empty((rows, features))
        self._library.silu_and_mul(
            x_RF.dtype is torch.bfloat16, x_RF.data_ptr(), out_RF.data_ptr(), rows, features, torch.get_num_threads()
        )
        return out_RF

    def _norm(self, x: Tensor, residual: Tensor | None, weight_D: Tensor, out: Tensor, eps: float) -> None:
        features = x.shape[-1]
        self._library.rms_norm(
            x.dtype is torch.bfloat16,
            x.data_ptr(),
            None if residual is None else residual.data_ptr(),
            weight_D.data_ptr(),
            out.data_ptr(),
            x.numel() // features,
            features,
            eps,
            torch.get_num_threads(),
        )


def is_known(x: Tensor) -> bool:
    """Whether the kernels know the type of `x`."""
    return x.dtype in (torch.bfloat16, torch.float32)
