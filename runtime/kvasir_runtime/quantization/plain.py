"""Weights as they are, multiplied by torch itself."""

from torch import Tensor
from torch.nn import functional

from kvasir_runtime.quantization.base import LinearMethod


class PlainLinear:
    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        self.weight_OI = weight_OI
        self.bias_O = bias_O
        self.nbytes = weight_OI.nbytes + (0 if bias_O is None else bias_O.nbytes)

    def __call__(self, x_RI: Tensor) -> Tensor:
        return functional.linear(x_RI, self.weight_OI, self.bias_O)


class PlainMethod(LinearMethod):
    """No quantization, no packing."""

    name = "none"
    copies = False

    def pack(self, weight_OI: Tensor, bias_O: Tensor | None) -> PlainLinear:
        return PlainLinear(weight_OI, bias_O)
