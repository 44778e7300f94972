"""bfloat16 weights in the blocked layout of oneDNN's matrix multiplication, chosen once at load.

`torch.nn.functional.linear` leaves the weight as it is and lets oneDNN read it row by row; with one row of
activations that reaches about half of the memory bandwidth that the blocked layout reaches.
"""

import torch
from torch import Tensor

from kvasir_runtime.quantization.base import LinearMethod

_EXPECTED_ROWS = 16
"""Rows that the layout is chosen for: a decode batch. It serves other numbers of rows nearly as well."""


class OneDnnLinear:
    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI, _EXPECTED_ROWS)
        self._bias_O = bias_O
        self._linear = torch.ops.mkldnn._linear_pointwise.default
        self.nbytes = weight_OI.nbytes + (0 if bias_O is None else bias_O.nbytes)

    def __call__(self, x_RI: Tensor) -> Tensor:
        out_RO: Tensor = self._linear(x_RI, self._packed, self._bias_O, "none", [], "")
        return out_RO


class OneDnnMethod(LinearMethod):
    """No quantization, but packed."""

    name = "none"
    copies = True

    def pack(self, weight_OI: Tensor, bias_O: Tensor | None) -> OneDnnLinear:
        return OneDnnLinear(weight_OI, bias_O)

    @staticmethod
    def available() -> bool:
        return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
