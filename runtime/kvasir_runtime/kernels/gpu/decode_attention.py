"""Decode attention: one token of each sequence, its KV split among as many programs as fill the device.

A kernel looks at all lengths and cuts the step's KV into items of about the same number of tokens, at least
`LEAST_CHUNK`; each item is one piece of one sequence. The grid holds as many items as there can be, whatever the
lengths are, so that it may be replayed as a CUDA graph. The query heads of a KV head are the rows of one matrix
multiplication. Rows of length 0 (padding) cost one empty program and give 0.

How a row is cut, and so the order of its sums, depends on the other rows of the step.

Shape suffixes: N rows, I items, M query heads of a group, padded; others as in `attention.backend`.
"""

from dataclasses import dataclass
from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvasir_runtime.attention.metadata import AttentionSpec, Sequences
from kvasir_runtime.kernels.gpu.merge import merge_parts
from kvasir_runtime.kernels.gpu.numerics import LOG2E, multiprocessors, power_of_two
from kvasir_runtime.kernels.gpu.paged_kv import CODE_MAX, attend_tile, scales_view

TILE: Final = 64
"""Tokens at a time: four blocks of 16, 32 KB of keys and values in bfloat16 with 128 columns; two tiles are in flight
(of five stages, two read the block table and one computes)."""
LEAST_CHUNK: Final = 256
"""Tokens that are worth a program of their own and a part to merge."""
PROGRAMS_PER_MULTIPROCESSOR: Final = 2


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """How a step's decode rows are cut: computed on the device, used by all layers with the same window.

    rows_I: the row of each item, -1 beyond the last. starts_N1: the first item of each row. chunk_1: tokens in an item.
    begins_N: the first token of each row that counts, None for all from 0 on (see `cascade`).
    """

    rows_I: Tensor
    starts_N1: Tensor
    chunk_1: Tensor
    begins_N: Tensor | None = None


@triton.jit
def _plan(
    lengths_ptr, begins_ptr, rows_ptr, starts_ptr, chunk_ptr, num_rows, num_items, wanted, least_chunk,
    WINDOW: tl.constexpr, BEGINS: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr, ITEMS: tl.constexpr,
):  # fmt: skip
    rows = tl.arange(0, ROWS)
    lengths = tl.load(lengths_ptr + rows, mask=rows < num_rows, other=0)
    low = tl.zeros((ROWS,), tl.int32)
    if WINDOW > 0:
        low = tl.maximum(lengths - WINDOW, 0)
    if BEGINS:
        low = tl.maximum(low, tl.load(begins_ptr + rows, mask=rows < num_rows, other=0))
    spans = lengths - low // TILE * TILE
    even_share = (tl.sum(spans, 0) + wanted - 1) // wanted
    chunk = tl.maximum(least_chunk, (even_share + TILE - 1) // TILE * TILE)
    counts = (spans + chunk - 1) // chunk
    ends = tl.cumsum(counts, 0)
    firsts = ends - counts
    tl.store(chunk_ptr, chunk)
    tl.store(starts_ptr, 0)
    tl.store(starts_ptr + 1 + rows, ends, mask=rows < num_rows)
    items = tl.arange(0, ITEMS)
    tl.store(rows_ptr + items, -1, mask=(items >= tl.sum(counts, 0)) & (items < num_items))
    for split in range(tl.max(counts, 0)):
        tl.store(rows_ptr + firsts + split, rows, mask=split < counts)


@triton.jit
def _decode(
    q_ptr, cache_ptr, scales_ptr, tables_ptr, lengths_ptr, begins_ptr, rows_ptr, starts_ptr, chunk_ptr,
    out_ptr, parts_ptr, lse_ptr,
    q_stride_n, q_stride_h, table_stride, num_blocks, scale_log2, softcap,
    H: tl.constexpr, K: tl.constexpr, C: tl.constexpr, C_PAD: tl.constexpr, M: tl.constexpr, S: tl.constexpr,
    TILE: tl.constexpr, ALIGN: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SCALED: tl.constexpr,
    BEGINS: tl.constexpr, ALONE: tl.constexpr,
):  # fmt: skip
    kv_head = tl.program_id(0)
    item = tl.program_id(1)
    row = tl.load(rows_ptr + item)
    if row < 0:
        return
    G: tl.constexpr = H // K
    first_item = tl.load(starts_ptr + row)
    parts = tl.load(starts_ptr + row + 1) - first_item
    chunk = tl.load(chunk_ptr)
    length = tl.load(lengths_ptr + row)
    low = 0
    if WINDOW > 0:
        low = tl.maximum(length - WINDOW, 0)
    if BEGINS:
        low = tl.maximum(low, tl.load(begins_ptr + row))
    begin = low // ALIGN * ALIGN + (item - first_item) * chunk
    end = tl.minimum(begin + chunk, length)
    group_M = tl.arange(0, M)
    heads_M = kv_head * G + group_M
    columns_C = tl.arange(0, C_PAD)
    inside_MC = (group_M < G)[:, None] & (columns_C < C)[None, :]
    q_at = row.to(tl.int64) * q_stride_n + heads_M[:, None] * q_stride_h + columns_C[None, :]
    q_MC = tl.load(q_ptr + q_at, mask=inside_MC, other=0.0)
    acc_MC = tl.zeros((M, C_PAD), tl.float32)
    max_M = tl.full((M,), -1.0e30, tl.float32)
    sum_M = tl.zeros((M,), tl.float32)
    table_ptr = tables_ptr + row.to(tl.int64) * table_stride
    for first_token in range(begin, end, TILE):
        acc_MC, max_M, sum_M = attend_tile(
            q_MC, acc_MC, max_M, sum_M, max_M, first_token, low, end,
            cache_ptr, scales_ptr, table_ptr, kv_head, num_blocks, scale_log2, softcap,
            K, C, C_PAD, S, TILE, 0, SOFTCAP, SCALED, MASKED=True, CAUSAL=False,
        )  # fmt: skip
    acc_MC = acc_MC / sum_M[:, None]
    if ALONE:
        if parts == 1:
            out_at = (row.to(tl.int64) * H + heads_M[:, None]) * C + columns_C[None, :]
            tl.store(out_ptr + out_at, acc_MC.to(out_ptr.dtype.element_ty), mask=inside_MC)
            return
    at_M = item.to(tl.int64) * H + heads_M
    tl.store(parts_ptr + at_M[:, None] * C + columns_C[None, :], acc_MC, mask=inside_MC)
    tl.store(lse_ptr + at_M, max_M + tl.log2(sum_M), mask=group_M < G)


def plan_splits(
    sequences: Sequences, spec: AttentionSpec, *, items: int | None = None, begins_N: Tensor | None = None
) -> SplitPlan:
    """Cut the sequences' KV into about `items` pieces for each KV head, by default as many as fill the device."""
    lengths_N = sequences.lengths_N
    rows, device = len(lengths_N), lengths_N.device
    wanted = items or -(-multiprocessors(device) * PROGRAMS_PER_MULTIPROCESSOR // spec.num_kv_heads)
    most = rows + wanted  # each row's last item may be a short one
    plan = SplitPlan(
        torch.empty(most, dtype=torch.int32, device=device),
        torch.empty(rows + 1, dtype=torch.int32, device=device),
        torch.empty(1, dtype=torch.int32, device=device),
        begins_N,
    )
    _plan[(1,)](
        lengths_N,
        lengths_N if begins_N is None else begins_N,
        plan.rows_I,
        plan.starts_N1,
        plan.chunk_1,
        rows,
        most,
        wanted,
        LEAST_CHUNK,
        WINDOW=spec.window or 0,
        BEGINS=begins_N is not None,
        TILE=TILE,
        ROWS=power_of_two(rows),
        ITEMS=power_of_two(most),
        num_warps=4,
    )
    return plan


def decode_parts(
    q_NHC: Tensor, kv_2BKSC: Tensor, sequences: Sequences, spec: AttentionSpec, plan: SplitPlan, out_NHC: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Each item's own attention and its lse: `[I, H, C]` and `[I, H]` in float32.

    With `out_NHC`, which is contiguous, rows of one item go there instead.
    """
    assert q_NHC.stride(2) == 1
    items = len(plan.rows_I)
    parts_IHC = q_NHC.new_empty((items, *q_NHC.shape[1:]), dtype=torch.float32)
    lse_IH = q_NHC.new_empty((items, spec.num_heads), dtype=torch.float32)
    _decode[(spec.num_kv_heads, items)](
        q_NHC,
        kv_2BKSC,
        scales_view(kv_2BKSC),
        sequences.tables_NM,
        sequences.lengths_N,
        sequences.lengths_N if plan.begins_N is None else plan.begins_N,
        plan.rows_I,
        plan.starts_N1,
        plan.chunk_1,
        parts_IHC if out_NHC is None else out_NHC,
        parts_IHC,
        lse_IH,
        q_NHC.stride(0),
        q_NHC.stride(1),
        sequences.tables_NM.stride(0),
        kv_2BKSC.shape[1],
        spec.scale * LOG2E,
        (spec.softcap or 1.0) * LOG2E,
        H=spec.num_heads,
        K=spec.num_kv_heads,
        C=spec.head_dim,
        C_PAD=power_of_two(spec.head_dim, 16),
        M=power_of_two(spec.group, 16),
        S=kv_2BKSC.shape[3],
        TILE=TILE if spec.head_dim <= 128 else TILE // 2,
        ALIGN=TILE,
        WINDOW=spec.window or 0,
        SOFTCAP=spec.softcap is not None,
        SCALED=kv_2BKSC.dtype in CODE_MAX,
        BEGINS=plan.begins_N is not None,
        ALONE=out_NHC is not None,
        num_warps=4,
        num_stages=5,
    )
    return parts_IHC, lse_IH


def decode_attention(
    q_NHC: Tensor, kv_2BKSC: Tensor, sequences: Sequences, spec: AttentionSpec, plan: SplitPlan
) -> Tensor:
    """Attention of one query of each sequence over its block table: `[N, H, C]`. Oracle: `attention.reference`."""
    out_NHC = torch.empty(q_NHC.shape, dtype=q_NHC.dtype, device=q_NHC.device)
    parts_IHC, lse_IH = decode_parts(q_NHC, kv_2BKSC, sequences, spec, plan, out_NHC)
    merge_parts(out_NHC, parts_IHC, lse_IH, plan.starts_N1)
    return out_NHC
