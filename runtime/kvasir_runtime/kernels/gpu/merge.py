"""Parts of one attention, computed over different tokens, merged by their log-sum-exp.

Each part is normalised by its own sum; `lse` is the logarithm to base 2 of that sum, so that a part weighs 2^lse.
Source: arXiv 2402.02082 (merging partial attentions), arXiv 2311.01282 (Flash-Decoding).

Shape suffixes: I parts (items), N rows, H heads, C head dimension.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvasir_runtime.kernels.gpu.numerics import power_of_two

PARTS_AT_ONCE = 16


@triton.jit
def _merge(
    parts_ptr, lse_ptr, starts_ptr, out_ptr, shared_ptr, shared_lse_ptr, shared_parts, rows,
    H: tl.constexpr, C: tl.constexpr, C_PAD: tl.constexpr, AT_ONCE: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    head = tl.program_id(1)
    first = tl.load(starts_ptr + row)
    last = tl.load(starts_ptr + row + 1)
    if not SHARED:
        if last - first == 1:  # its one part was written as the result
            return
    columns_C = tl.arange(0, C_PAD)
    inside_C = columns_C < C
    highest = -1.0e30
    total = 0.0
    acc_C = tl.zeros((C_PAD,), tl.float32)
    for start in range(first, last, AT_ONCE):
        items = start + tl.arange(0, AT_ONCE)
        at = items.to(tl.int64) * H + head
        lse = tl.load(lse_ptr + at, mask=items < last, other=-1.0e30)
        parts = tl.load(
            parts_ptr + at[:, None] * C + columns_C[None, :],
            mask=(items < last)[:, None] & inside_C[None, :],
            other=0.0,
        )
        new_highest = tl.maximum(highest, tl.max(lse, 0))
        weights = tl.where(items < last, tl.exp2(lse - new_highest), 0.0)
        rescale = tl.exp2(highest - new_highest)
        total = total * rescale + tl.sum(weights, 0)
        acc_C = acc_C * rescale + tl.sum(parts * weights[:, None], 0)
        highest = new_highest
    if SHARED:
        for start in range(0, shared_parts, AT_ONCE):
            items = start + tl.arange(0, AT_ONCE)
            at = (items.to(tl.int64) * rows + row) * H + head
            lse = tl.load(shared_lse_ptr + at, mask=items < shared_parts, other=-1.0e30)
            there = lse > -1.0e30
            parts = tl.load(
                shared_ptr + at[:, None] * C + columns_C[None, :], mask=there[:, None] & inside_C[None, :], other=0.0
            )
            new_highest = tl.maximum(highest, tl.max(lse, 0))
            weights = tl.where(there, tl.exp2(lse - new_highest), 0.0)
            rescale = tl.exp2(highest - new_highest)
            total = total * rescale + tl.sum(weights, 0)
            acc_C = acc_C * rescale + tl.sum(parts * weights[:, None], 0)
            highest = new_highest
    result_C = acc_C / tl.where(total > 0, total, 1.0)
    out_at = (row.to(tl.int64) * H + head) * C + columns_C
    tl.store(out_ptr + out_at, result_C.to(out_ptr.dtype.element_ty), mask=inside_C)


def merge_parts(
    out_NHC: Tensor,
    parts_IHC: Tensor,
    lse_IH: Tensor,
    starts_N1: Tensor,
    shared: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Fill `out_NHC`, row n from parts `starts[n]` to `starts[n + 1]` and, with `shared`, from part n of each of those.

    Without `shared`, rows of exactly one part are left as they are, and rows of none become 0. `shared` is
    `[P, N, H, C]` and `[P, N, H]` in float32; a part with an lse of -1e30 or less is no part.
    """
    rows, heads, head_dim = out_NHC.shape
    shared_PNHC, shared_PNH = (parts_IHC, lse_IH) if shared is None else shared
    _merge[(rows, heads)](
        parts_IHC,
        lse_IH,
        starts_N1,
        out_NHC,
        shared_PNHC,
        shared_PNH,
        len(shared_PNHC),
        rows,
        H=heads,
        C=head_dim,
        C_PAD=power_of_two(head_dim),
        AT_ONCE=PARTS_AT_ONCE,
        SHARED=shared is not None,
        num_warps=2,
    )


def merge_oracle(parts_PC: Tensor, lse_P: Tensor) -> Tensor:
    """One row and head."""
    return (lse_P * 0.6931471805599453).softmax(0) @ parts_PC.float() if len(lse_P) else torch.zeros(parts_PC.shape[1])
