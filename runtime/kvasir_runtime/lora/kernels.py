"""Adding the adapters' part to the output of a layer, behind one interface: the C++ kernel, and its oracle in torch.

Letters: T rows, G groups of rows with the same adapter, I inputs, O outputs of all parts of a fused layer.
"""

import ctypes
from ctypes import c_int, c_int64, c_void_p
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from kvasir_runtime.kernels.cpu.library import Library
from kvasir_runtime.lora.batch import LoraBatch
from kvasir_runtime.lora.image import Array, Matrices

Parts = list[Matrices | None]
"""One adapter's matrices of a fused layer; None where it does not change a part."""


class LoraSlots:
    """What the slots hold for one fused layer, in the forms that the kernels read."""

    def __init__(self, outputs: list[int], num_slots: int) -> None:
        self.offsets = np.append(0, np.cumsum(outputs)).astype(np.int64)
        self.parts: list[Parts] = [[None] * len(outputs) for _ in range(num_slots)]
        self.table = np.zeros((num_slots, len(outputs), 3), dtype=np.int64)
        """Addresses of A and B, and the padded rank."""
        self.addresses = self.table.ctypes.data, self.offsets.ctypes.data
        self.width = 0
        """Most ranks that an adapter has in all parts together."""

    def put(self, slot: int, parts: Parts) -> None:
        self.parts[slot] = parts
        for number, matrices in enumerate(parts):
            if matrices is None:
                self.table[slot, number] = 0
            else:
                self.table[slot, number] = matrices.a.ctypes.data, matrices.b.ctypes.data, matrices.rank
        self.width = int(self.table[:, :, 2].sum(1).max())


class LoraKernel(Protocol):
    """Adds to `out_TO`, for each row of a group, B(A x) of the group's adapter."""

    def __call__(self, x_TI: Tensor, out_TO: Tensor, batch: LoraBatch, slots: LoraSlots) -> None: ...


class TorchLora:
    """Plain torch, on any CPU; the oracle of the other."""

    def __call__(self, x_TI: Tensor, out_TO: Tensor, batch: LoraBatch, slots: LoraSlots) -> None:
        for group, slot in enumerate(batch.slots_G):
            rows = torch.from_numpy(batch.rows_N[batch.starts_G1[group] : batch.starts_G1[group + 1]]).long()
            for part, matrices in enumerate(slots.parts[slot]):
                if matrices is None:
                    continue
                begin, end = int(slots.offsets[part]), int(slots.offsets[part + 1])
                a_IR, b_RO = unpack(matrices.a).T[: x_TI.shape[1]], unpack(matrices.b)[: end - begin].T
                middle_NR = (x_TI[rows].float() @ a_IR.float()).to(x_TI.dtype)
                added_NO = middle_NR.float() @ b_RO.float()
                out_TO[rows, begin:end] = (out_TO[rows, begin:end].float() + added_NO).to(out_TO.dtype)


class CpuLora:
    """By `kernels/cpu/cpp/lora.cpp`, for float32 and bfloat16."""

    def __init__(self, library: Library) -> None:
        self._run: Any = ctypes.CDLL(str(library.path)).kvasir_lora
        self._run.argtypes = [c_int, *[c_void_p] * 8, *[c_int64] * 6, c_int]
        self._run.restype = None
        self._middle = torch.empty(0)

    def __call__(self, x_TI: Tensor, out_TO: Tensor, batch: LoraBatch, slots: LoraSlots) -> None:
        if slots.width == 0:
            return
        assert x_TI.stride(1) == out_TO.stride(1) == 1
        needed = len(batch.rows_N) * slots.width
        if self._middle.numel() < needed or self._middle.dtype is not x_TI.dtype:
            self._middle = torch.empty(needed, dtype=x_TI.dtype)
        self._run(
            x_TI.dtype is torch.bfloat16,
            x_TI.data_ptr(),
            out_TO.data_ptr(),
            *batch.addresses,
            *slots.addresses,
            self._middle.data_ptr(),
            x_TI.stride(0),
            out_TO.stride(0),
            len(batch.slots_G),
            len(slots.offsets) - 1,
            x_TI.shape[1],
            slots.width,
            torch.get_num_threads(),
        )


def unpack(panels: Array) -> Tensor:
    """The matrix `[lanes, middle]` that lies in panels, padding included."""
    if panels.ndim == 3:
        return torch.from_numpy(panels).transpose(1, 2).flatten(0, 1)
    return torch.from_numpy(panels.view(np.int16)).view(torch.bfloat16).permute(0, 2, 1, 3).flatten(0, 1).flatten(1)
