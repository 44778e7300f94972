"""Experts of a mixture in one launch: rows sorted by expert, each tile of rows multiplied by its expert's matrix.

Source: arXiv 2211.15841 (MegaBlocks), without its block-sparse storage: tiles begin at each expert's first row.

Shape suffixes: T tokens, A experts a token, N = T * A rows sorted by expert, E experts, I inputs, O outputs; in kernels
M rows and O outputs of a tile.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvasir_runtime.kernels.gpu.groups import group_of_tile
from kvasir_runtime.kernels.gpu.numerics import dot


@dataclass(frozen=True, slots=True)
class ExpertRows:
    """Each token once for each of its experts, sorted by expert.

    places_N: where a row was before sorting, token * A + number of the expert; starts_E1: each expert's first row.
    Both int32, made on the device without waiting for it.
    """

    places_N: Tensor
    starts_E1: Tensor
    experts_per_token: int


def sort_by_expert(chosen_TA: Tensor, num_experts: int) -> ExpertRows:
    """Rows by the experts that their tokens chose; equal ones stay in order."""
    sorted_N, places_N = chosen_TA.flatten().sort(stable=True)
    experts_E1 = torch.arange(num_experts + 1, device=chosen_TA.device)
    starts_E1 = torch.searchsorted(sorted_N, experts_E1)
    return ExpertRows(places_N.int(), starts_E1.int(), chosen_TA.shape[1])


@triton.jit
def _grouped(
    x_ptr, weights_ptr, places_ptr, starts_ptr, factors_ptr, out_ptr, num_experts, num_outputs, x_stride,
    I: tl.constexpr, A: tl.constexpr, M: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
    GATHER: tl.constexpr,
):  # fmt: skip
    expert, first, end = group_of_tile(starts_ptr, num_experts, tl.program_id(1), M)
    if first >= end:
        return
    rows_M = first + tl.arange(0, M)
    there_M = rows_M < end
    places_M = tl.load(places_ptr + rows_M, mask=there_M, other=0)
    outputs_O = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    inside_O = outputs_O < num_outputs
    sources_M = places_M // A if GATHER else rows_M
    weights_at_O = weights_ptr + (expert.to(tl.int64) * num_outputs + outputs_O) * I
    acc_MO = tl.zeros((M, OUTPUTS), tl.float32)
    for start in range(0, I, INPUTS):
        inputs_I = start + tl.arange(0, INPUTS)
        inside_I = (inputs_I < I)[None, :]
        x_at_MI = x_ptr + sources_M.to(tl.int64)[:, None] * x_stride + inputs_I[None, :]
        x_MI = tl.load(x_at_MI, mask=there_M[:, None] & inside_I, other=0.0)
        w_OI = tl.load(weights_at_O[:, None] + inputs_I[None, :], mask=inside_O[:, None] & inside_I, other=0.0)
        acc_MO = dot(x_MI, tl.trans(w_OI), acc_MO)
    targets_M = rows_M
    if not GATHER:
        targets_M = places_M
        acc_MO *= tl.load(factors_ptr + places_M, mask=there_M, other=0.0).to(tl.float32)[:, None]
    out_at_MO = out_ptr + targets_M.to(tl.int64)[:, None] * num_outputs + outputs_O[None, :]
    tl.store(out_at_MO, acc_MO.to(out_ptr.dtype.element_ty), mask=there_M[:, None] & inside_O[None, :])


def _launch(x: Tensor, weights_EOI: Tensor, rows: ExpertRows, factors: Tensor, *, gather: bool) -> Tensor:
    assert x.stride(1) == 1
    assert weights_EOI.is_contiguous()
    experts, outputs, inputs = weights_EOI.shape
    count = len(rows.places_N)
    m, n, warps = (16, 64, 4) if count <= 16 * experts else (64, 128, 8)
    out_NO = torch.empty((count, outputs), dtype=x.dtype, device=x.device)
    _grouped[(-(-outputs // n), count // m + experts)](
        x,
        weights_EOI,
        rows.places_N,
        rows.starts_E1,
        factors,
        out_NO,
        experts,
        outputs,
        x.stride(0),
        I=inputs,
        A=rows.experts_per_token,
        M=m,
        OUTPUTS=n,
        INPUTS=64,
        GATHER=gather,
        num_warps=warps,
        num_stages=4,
    )
    return out_NO


def expand_to_experts(x_TI: Tensor, weights_EOI: Tensor, rows: ExpertRows) -> Tensor:
    """Each sorted row's token times its expert's matrix: `[N, O]`, sorted by expert."""
    return _launch(x_TI, weights_EOI, rows, x_TI, gather=True)


def combine_experts(x_NI: Tensor, weights_EOI: Tensor, rows: ExpertRows, factors_TA: Tensor) -> Tensor:
    """Each sorted row times its expert's matrix and its token's factor, summed over a token's experts: `[T, O]`.

    The sum is always in the same order: rows go back to their places before it.
    """
    out_NO = _launch(x_NI, weights_EOI, rows, factors_TA.contiguous(), gather=False)
    out_TAO: Tensor = out_NO.unflatten(0, (-1, rows.experts_per_token))
    return out_TAO.sum(1)


def experts_oracle(x_TI: Tensor, weights_EOI: Tensor, chosen_TA: Tensor) -> Tensor:
    """Each token times the matrices of its experts: `[T, A, O]`, float32."""
    return torch.einsum("ti,taoi->tao", x_TI.float(), weights_EOI.float()[chosen_TA])
