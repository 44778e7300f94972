"""Adapters on a GPU: copies of the slots' matrices, made when a slot changes, and the Triton kernels over them."""

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from kvasir_runtime.kernels.gpu.lora import LoraGroups, LoraStack, add_adapters, output_blocks
from kvasir_runtime.kernels.gpu.numerics import power_of_two
from kvasir_runtime.lora.batch import LoraBatch
from kvasir_runtime.lora.kernels import LoraSlots, Parts, unpack


class TritonLora:
    """A `LoraKernel`. Layers with the same batch share one copy of its groups."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stacks: WeakKeyDictionary[LoraSlots, _DeviceSlots] = WeakKeyDictionary()
        self._batch: LoraBatch | None = None
        self._groups: LoraGroups | None = None

    def __call__(self, x_TI: Tensor, out_TO: Tensor, batch: LoraBatch, slots: LoraSlots) -> None:
        if slots.width == 0:
            return
        if slots not in self._stacks:
            self._stacks[slots] = _DeviceSlots(slots, x_TI)
        add_adapters(x_TI, out_TO, self._groups_of(batch), self._stacks[slots].updated(slots))

    def _groups_of(self, batch: LoraBatch) -> LoraGroups:
        if self._groups is None or self._batch is not batch:
            arrays = (batch.rows_N, batch.starts_G1, batch.slots_G)
            self._batch = batch
            self._groups = LoraGroups(*(torch.from_numpy(array).to(self._device) for array in arrays))
        return self._groups


class _DeviceSlots:
    """One fused layer's slots on the device, as large as the largest rank so far."""

    def __init__(self, slots: LoraSlots, like_TI: Tensor) -> None:
        self._empty = like_TI.new_empty(0)
        self._inputs = like_TI.shape[1]
        blocks = output_blocks(slots.offsets.tolist())
        self._blocks = [torch.tensor(column, dtype=torch.int32, device=like_TI.device) for column in blocks]
        self._held: list[Parts | None] = [None] * len(slots.parts)
        self._stack: LoraStack | None = None

    def updated(self, slots: LoraSlots) -> LoraStack:
        """The matrices as they are now; copies those that changed."""
        rank = power_of_two(int(slots.table[:, :, 2].max()), 16)
        if self._stack is None or self._stack.a_WPRI.shape[2] < rank:
            self._stack = self._allocate(slots, rank)
            self._held = [None] * len(slots.parts)
        for slot, parts in enumerate(slots.parts):
            if self._held[slot] is not parts:
                self._fill(self._stack, slots, slot, parts)
                self._held[slot] = parts
        return self._stack

    def _allocate(self, slots: LoraSlots, rank: int) -> LoraStack:
        count, parts, outputs = len(slots.parts), len(slots.offsets) - 1, int(slots.offsets[-1])
        a_WPRI = self._empty.new_zeros((count, parts, rank, self._inputs))
        b_WOR = self._empty.new_zeros((count, outputs, rank))
        return LoraStack(a_WPRI, b_WOR, *self._blocks)

    def _fill(self, stack: LoraStack, slots: LoraSlots, slot: int, parts: Parts) -> None:
        stack.a_WPRI[slot], stack.b_WOR[slot] = 0, 0
        for part, matrices in enumerate(parts):
            if matrices is not None:
                begin, end = int(slots.offsets[part]), int(slots.offsets[part + 1])
                stack.a_WPRI[slot, part, : matrices.rank] = unpack(matrices.a)[:, : self._inputs].to(stack.b_WOR.device)
                stack.b_WOR[slot, begin:end, : matrices.rank] = unpack(matrices.b)[: end - begin].to(stack.b_WOR.device)
