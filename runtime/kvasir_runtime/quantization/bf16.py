"""bfloat16 weights in panels that the C++ kernel reads from beginning to end, as fast as memory delivers them.

A row's result is summed in the same order whatever else is in the batch. oneDNN's layout (`onednn.py`) serves CPUs
with matrix tiles (AMX) and those without bfloat16 dot products.
"""

from typing import Final

import torch
from torch import Tensor

from kvasir_runtime.huge_pages import Arena
from kvasir_runtime.kernels.cpu.library import Library
from kvasir_runtime.quantization.base import LinearMethod, PackedLinear
from kvasir_runtime.quantization.plain import PlainLinear

PANEL: Final = 16
"""Outputs of a panel."""


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

    def fields(self) -> tuple[int, ...]:
        """What `layers.cpp` calls a weight."""
        return self._panels.data_ptr(), 0, 0, 0 if self._bias_O is None else self._bias_O.data_ptr(), *self._shape

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


class SiluGatedBf16Linear:
    """Two weights, sixteen outputs of the gate and sixteen of what it gates in turn."""

    def __init__(self, library: Library, arena: Arena, gate_OI: Tensor, gated_OI: Tensor) -> None:
        self._library = library
        self._outputs, self._inputs = gate_OI.shape
        both_OI = torch.stack((gate_OI.unflatten(0, (-1, PANEL)), gated_OI.unflatten(0, (-1, PANEL))), 1).flatten(0, 2)
        self._panels = arena.take(library.bf16_bytes(*both_OI.shape))
        threads = torch.get_num_threads()
        library.pack_bf16(both_OI.data_ptr(), self._panels.data_ptr(), *both_OI.shape, threads)
        self.nbytes = self._panels.nbytes

    def fields(self) -> tuple[int, ...]:
        """What `layers.cpp` calls a weight."""
        return self._panels.data_ptr(), 0, 0, 0, self._outputs, self._inputs

    def __call__(self, x_RI: Tensor) -> Tensor:
        x_RI = x_RI.contiguous()
        out_RO = x_RI.new_empty((x_RI.shape[0], self._outputs))
        self._library.silu_gated_bf16(
            x_RI.data_ptr(),
            self._panels.data_ptr(),
            out_RO.data_ptr(),
            x_RI.shape[0],
            self._outputs,
            self._inputs,
            torch.get_num_threads(),
        )
        return out_RO


class Bf16Method(LinearMethod):
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

    def gates(self, outputs: int, inputs: int) -> bool:
        return outputs % PANEL == 0 and inputs % 2 == 0

    def pack_silu_gated(self, gate_OI: Tensor, gated_OI: Tensor) -> PackedLinear:
        return SiluGatedBf16Linear(self._library, self._arena, gate_OI, gated_OI)

    @staticmethod
    def available(library: Library | None) -> bool:
        """Whether this CPU has bfloat16 dot products, and no matrix tiles, which are faster."""
        return library is not None and library.bf16_bytes(1, 2) > 0 and not torch.cpu._is_amx_tile_supported()
