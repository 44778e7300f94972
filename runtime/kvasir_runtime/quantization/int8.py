"""int8 weights with one scale an output, activations quantized row by row as they come.

Symmetric: the largest magnitude of an output's weights, and of a row's activations, becomes 127. Products are summed
in int32, so that the result depends on neither the number of rows nor of threads.
Source: arXiv 2208.07339 (vector-wise quantization; without its outlier decomposition).
"""

import torch
from torch import Tensor

from kvasir_runtime.huge_pages import Arena
from kvasir_runtime.kernels.cpu.library import Library
from kvasir_runtime.quantization.base import LinearMethod


class Int8Linear:
    def __init__(self, library: Library, arena: Arena, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        outputs, inputs = weight_OI.shape
        weight_OI = weight_OI.contiguous()
        self._library = library
        self._shape = (outputs, inputs)
        self._panels = arena.take(library.int8_bytes(outputs, inputs))
        self._scales_O = torch.empty(outputs, dtype=torch.float32)
        self._shifts_O = torch.empty(outputs, dtype=torch.int32)
        self._bias_O = None if bias_O is None else bias_O.float()
        library.pack_int8(
            weight_OI.dtype is torch.bfloat16,
            weight_OI.data_ptr(),
            self._panels.data_ptr(),
            self._scales_O.data_ptr(),
            self._shifts_O.data_ptr(),
            outputs,
            inputs,
            torch.get_num_threads(),
        )
        parts = (self._panels, self._scales_O, self._shifts_O, self._bias_O)
        self.nbytes = sum(part.nbytes for part in parts if part is not None)

    def fields(self) -> tuple[int, ...]:
        """What `layers.cpp` calls a weight."""
        bias = 0 if self._bias_O is None else self._bias_O.data_ptr()
        return self._panels.data_ptr(), self._scales_O.data_ptr(), self._shifts_O.data_ptr(), bias, *self._shape

    def __call__(self, x_RI: Tensor) -> Tensor:
        x_RI = x_RI.contiguous()
        outputs, inputs = self._shape
        out_RO = x_RI.new_empty((x_RI.shape[0], outputs))
        self._library.linear_int8(
            x_RI.dtype is torch.bfloat16,
            x_RI.data_ptr(),
            self._panels.data_ptr(),
            self._scales_O.data_ptr(),
            self._shifts_O.data_ptr(),
            None if self._bias_O is None else self._bias_O.data_ptr(),
            out_RO.data_ptr(),
            x_RI.shape[0],
            outputs,
            inputs,
            torch.get_num_threads(),
        )
        return out_RO


class Int8Method(LinearMethod):
    """For float32 and bfloat16 checkpoints, quantized as they are loaded."""

    name = "int8"
    copies = True

    def __init__(self, library: Library) -> None:
        self._library = library
        self._arena = Arena()

    def pack(self, weight_OI: Tensor, bias_O: Tensor | None) -> Int8Linear:
        return Int8Linear(self._library, self._arena, weight_OI, bias_O)


def int8_linear_oracle(x_RI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """What `Int8Linear` computes, in plain torch and float64 sums."""
    weight_scale_O1 = weight_OI.float().abs().amax(-1, keepdim=True) / 127
    row_scale_R1 = x_RI.float().abs().amax(-1, keepdim=True) / 127
    weight = (weight_OI.float() / weight_scale_O1.clamp(min=1e-30)).round()
    inverse_R1 = 1 / row_scale_R1.clamp(min=1e-30)
    # The kernel multiplies and adds with one rounding to float32; in float64 both are exact before it.
    rows = (x_RI.double() * inverse_R1.double() + 128.5).float().floor() - 128
    out_RO = (rows.double() @ weight.double().T).float() * weight_scale_O1.T * row_scale_R1
    return (out_RO if bias_O is None else out_RO + bias_O.float()).to(x_RI.dtype)
