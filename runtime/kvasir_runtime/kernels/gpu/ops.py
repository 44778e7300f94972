"""The small operations of `layers.ops` by the Triton kernels."""

from torch import Tensor

from kvasir_runtime.kernels.gpu.activation import gate_and_mul
from kvasir_runtime.kernels.gpu.norm import rms_norm


class TritonOps:
    """For any floating dtype; norms accumulate in float32."""

    def rms_norm(self, x_RD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        return rms_norm(x_RD, weight_D, eps)

    def add_rms_norm(self, x_RD: Tensor, residual_RD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return rms_norm(x_RD, weight_D, eps, residual_RD), residual_RD

    def silu_and_mul(self, x_RF: Tensor) -> Tensor:
        return gate_and_mul(x_RF, gelu=False)

    def gelu_tanh_and_mul(self, x_RF: Tensor) -> Tensor:
        return gate_and_mul(x_RF, gelu=True)
