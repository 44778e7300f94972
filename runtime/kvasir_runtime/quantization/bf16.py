"""bfloat16 weights in panels that the C++ kernel reads from beginning to end, as fast as memory delivers them.

A row's result is summed in the same order whatever else is in the batch. oneDNN's layout (`onednn.py`) serves CPUs
with matrix tiles (AMX) and those without bfloat16 dot products.
"""

import torch
from torch import Tensor

from kvasir_runtime.huge_pages import Arena
from kvasir_runtime.kernels.cpu.library import Library
from kvasir_runtime.quantization.base import PackedLinear
from kvasir_runtime.quantization.plain import PlainLinear


class Bf16Linear:
    def __init__(self, library: Library, arena: Arena, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        outputs, inputs = weight_OI.shape
        weight_OI = weight_OI.contiguous()
        self._library = library
        self._shape = (outputs, inputs)
        self._panels = arena.take(library.bf16_bytes(outputs, inputs))
        self._bias_O = None if bias_O is None else bias_O.float()
        library.pack_bf16(weight_OI.data_ptr(), self._panels.data_ptr(), outputs, inputs, torch.get_num_threads())
        self.nbytes = self._panels.nbytes + (0 if self._bias_O is None else self._bias_O.nbytes)

    def __call__(self, x_RI: Tensor) -> Tensor:
        x_RI = x_RI.contiguous()
        outputs, inputs = self._shape
        out_RO = x_RI.new_empty((x_RI.shape[0], outputs))
        self._library.linear_bf16(
            x_RI.data_ptr(),
            self._panels.data_ptr(),
            None if self._bias_O is None else self._bias_O.data_ptr(),
            out_RO.data_ptr(),
            x_RI.shape[0],
            outputs,
            inputs,
            torch.get_num_threads(),
        )
        return out_RO


class Bf16Method:
    """No quantization, but packed."""

    name = "none"
    copies = True

    def __init__(self, library: Library) -> None:
        self._library = library
        self._arena = Arena()

    def pack(self, weight_OI: Tensor, bias_O: Tensor | None) -> PackedLinear:
        if self._library.bf16_bytes(*weight_OI.shape) == 0:  # an odd number of inputs
            return PlainLinear(weight_OI, bias_O)
        return Bf16Linear(self._library, self._arena, weight_OI, bias_O)

    @staticmethod
    def available(library: Library | None) -> bool:
        """Whether this CPU has bfloat16 dot products, and no matrix tiles, which are faster."""
        return library is not None and library.bf16_bytes(1, 2) > 0 and not torch.cpu._is_amx_tile_supported()
