"""Root mean square normalisation with a learnt weight."""

from torch import Tensor

from kvasir_runtime.layers.ops import Ops


class RMSNorm:
    """Normalises the last dimension. `offset` is added to the weight (1 in Gemma, whose weights are stored less 1)."""

    def __init__(self, weight_D: Tensor, eps: float, ops: Ops, offset: float = 0.0) -> None:
        self.weight_D = weight_D if offset == 0 else weight_D + offset
        self.eps = eps
        self.ops = ops

    def __call__(self, x: Tensor) -> Tensor:
        return self.ops.rms_norm(x, self.weight_D, self.eps)

    def add_and_norm(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of `residual + x`, and that sum, which may take the place of `residual`."""
        return self.ops.add_rms_norm(x, residual, self.weight_D, self.eps)
