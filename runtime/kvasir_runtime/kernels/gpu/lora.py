"""Adapters of many requests in one batch: rows grouped by adapter, first down to its rank, then up to the outputs.

All parts of a fused layer (q, k, v) go down in one launch and up in another. Ranks of smaller adapters are padded with
zeros. Source: arXiv 2310.18547 (Punica, segmented gather matrix-vector multiplication), arXiv 2311.03285 (S-LoRA).

Shape suffixes: T rows of the step, N rows with an adapter, sorted by its slot, G groups, W slots, P parts of a fused
layer, R rank (a power of two from 16 on), I inputs, O outputs of all parts, B blocks of outputs.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvasir_runtime.kernels.gpu.groups import group_of_tile
from kvasir_runtime.kernels.gpu.numerics import dot

ROWS: Final = 16
"""Of a tile: decode batches have few rows of one adapter."""
INPUTS: Final = 128
OUTPUTS: Final = 128


@dataclass(frozen=True, slots=True)
class LoraGroups:
    """Rows with an adapter: rows_N of the step, sorted, group g from `starts[g]` with slot `slots[g]`; all int32."""

    rows_N: Tensor
    starts_G1: Tensor
    slots_G: Tensor

    @property
    def tiles(self) -> int:
        return len(self.rows_N) // ROWS + len(self.slots_G)


@dataclass(frozen=True, slots=True)
class LoraStack:
    """All slots' matrices of a fused layer: a_WPRI and b_WOR, scale included; zeros where there is none.

    Block b of outputs are at most `OUTPUTS` from `begins_B[b]` on, which end at `ends_B[b]` and are of `parts_B[b]`.
    """

    a_WPRI: Tensor
    b_WOR: Tensor
    begins_B: Tensor
    ends_B: Tensor
    parts_B: Tensor


def output_blocks(offsets: list[int]) -> tuple[list[int], list[int], list[int]]:
    """Begins, ends and parts of the blocks that parts from `offsets[p]` to `offsets[p + 1]` are cut into."""
    blocks = [
        (begin, min(begin + OUTPUTS, end), part)
        for part, (start, end) in enumerate(pairwise(offsets))
        for begin in range(start, end, OUTPUTS)
    ]
    begins, ends, parts = zip(*blocks, strict=True)
    return list(begins), list(ends), list(parts)


@triton.jit
def _shrink(
    x_ptr, a_ptr, rows_ptr, starts_ptr, slots_ptr, middle_ptr, num_groups, x_stride,
    P: tl.constexpr, R: tl.constexpr, I: tl.constexpr, ROWS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(1)
    group, first, end = group_of_tile(starts_ptr, num_groups, tl.program_id(0), ROWS)
    if first >= end:
        return
    places_N = first + tl.arange(0, ROWS)
    there_N = places_N < end
    rows_N = tl.load(rows_ptr + places_N, mask=there_N, other=0).to(tl.int64)
    slot = tl.load(slots_ptr + group).to(tl.int64)
    ranks_R = tl.arange(0, R)
    a_at_R = a_ptr + ((slot * P + part) * R + ranks_R) * I
    acc_NR = tl.zeros((ROWS, R), tl.float32)
    for start in range(0, I, INPUTS):
        inputs_I = start + tl.arange(0, INPUTS)
        inside_I = inputs_I < I
        x_NI = tl.load(
            x_ptr + rows_N[:, None] * x_stride + inputs_I[None, :], mask=there_N[:, None] & inside_I[None, :], other=0.0
        )
        a_RI = tl.load(a_at_R[:, None] + inputs_I[None, :], mask=inside_I[None, :], other=0.0)
        acc_NR = dot(x_NI, tl.trans(a_RI), acc_NR)
    at_NR = (places_N[:, None] * P + part) * R + ranks_R[None, :]
    tl.store(middle_ptr + at_NR, acc_NR.to(middle_ptr.dtype.element_ty), mask=there_N[:, None])


@triton.jit
def _expand(
    middle_ptr, b_ptr, rows_ptr, starts_ptr, slots_ptr, begins_ptr, ends_ptr, parts_ptr, out_ptr,
    num_groups, out_stride,
    P: tl.constexpr, R: tl.constexpr, O: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(1)
    group, first, end = group_of_tile(starts_ptr, num_groups, tl.program_id(0), ROWS)
    if first >= end:
        return
    places_N = first + tl.arange(0, ROWS)
    there_N = places_N < end
    rows_N = tl.load(rows_ptr + places_N, mask=there_N, other=0).to(tl.int64)
    slot = tl.load(slots_ptr + group).to(tl.int64)
    part = tl.load(parts_ptr + block)
    outputs_O = tl.load(begins_ptr + block) + tl.arange(0, OUTPUTS)
    inside_O = outputs_O < tl.load(ends_ptr + block)
    ranks_R = tl.arange(0, R)
    middle_at_NR = (places_N[:, None] * P + part) * R + ranks_R[None, :]
    middle_NR = tl.load(middle_ptr + middle_at_NR, mask=there_N[:, None], other=0.0)
    b_at_OR = (slot * O + outputs_O)[:, None] * R + ranks_R[None, :]
    b_OR = tl.load(b_ptr + b_at_OR, mask=inside_O[:, None], other=0.0)
    inside_NO = there_N[:, None] & inside_O[None, :]
    out_at_NO = out_ptr + rows_N[:, None] * out_stride + outputs_O[None, :]
    before_NO = tl.load(out_at_NO, mask=inside_NO, other=0.0).to(tl.float32)
    after_NO = dot(middle_NR, tl.trans(b_OR), before_NO)
    tl.store(out_at_NO, after_NO.to(out_ptr.dtype.element_ty), mask=inside_NO)


def add_adapters(x_TI: Tensor, out_TO: Tensor, groups: LoraGroups, stack: LoraStack) -> None:
    """Add B(A x) of its adapter to each grouped row of `out_TO`. Oracle: `lora.kernels.TorchLora`."""
    assert x_TI.stride(1) == out_TO.stride(1) == 1
    _, parts, rank, inputs = stack.a_WPRI.shape
    middle_NPR = torch.empty((len(groups.rows_N), parts, rank), dtype=x_TI.dtype, device=x_TI.device)
    _shrink[(groups.tiles, parts)](
        x_TI,
        stack.a_WPRI,
        groups.rows_N,
        groups.starts_G1,
        groups.slots_G,
        middle_NPR,
        len(groups.slots_G),
        x_TI.stride(0),
        P=parts,
        R=rank,
        I=inputs,
        ROWS=ROWS,
        INPUTS=INPUTS if rank <= 64 else INPUTS // 2,
        num_warps=4,
        num_stages=3,
    )
    _expand[(groups.tiles, len(stack.begins_B))](
        middle_NPR,
        stack.b_WOR,
        groups.rows_N,
        groups.starts_G1,
        groups.slots_G,
        stack.begins_B,
        stack.ends_B,
        stack.parts_B,
        out_TO,
        len(groups.slots_G),
        out_TO.stride(0),
        P=parts,
        R=rank,
        O=stack.b_WOR.shape[1],
        ROWS=ROWS,
        OUTPUTS=OUTPUTS,
        num_warps=4,
    )
