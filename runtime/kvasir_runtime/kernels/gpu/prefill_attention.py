"""Prefill attention over paged KV: spans of new tokens, causal, each over all tokens before it.

A tile of queries has BLOCK_M rows: as many tokens as fit, each with all query heads of one KV head, so that keys and
values are read once for the whole group. Tiles of all spans stand one after the other; a program finds its span by
bisection, and those with the most tokens before them start first. Tokens that every row of a tile sees take no mask.
A span of one token, a decode row, is a span like any other.
Source: arXiv 2307.08691 (FlashAttention-2).

Shape suffixes: P rows, M rows of a tile; others as in `attention.backend`.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvasir_runtime.attention.metadata import AttentionSpec, Sequences
from kvasir_runtime.kernels.gpu.numerics import LOG2E, power_of_two
from kvasir_runtime.kernels.gpu.paged_kv import CODE_MAX, attend_tile, scales_view


@dataclass(frozen=True, slots=True)
class Tiles:
    """Rows of queries and tokens of KV in a tile, with the warps and the stages of the pipeline that go with them."""

    queries: int
    tokens: int
    warps: int
    stages: int


def tiles_for(head_dim: int, itemsize: int) -> Tiles:
    """So that nothing spills and shared memory holds two tiles, three on sm_90, beside the queries.

    Of five stages two read the block table: 128 columns in bfloat16 take 96 KB on sm_80 and 128 KB on sm_90.
    """
    if itemsize > 2:
        return Tiles(64, 32, 4, 3)
    if head_dim <= 128:
        return Tiles(128, 64, 8, 5)
    return Tiles(64, 32, 8, 5)


@triton.jit
def _prefill(
    q_ptr, cache_ptr, scales_ptr, tables_ptr, lengths_ptr, starts_ptr, out_ptr, num_spans,
    q_stride_p, q_stride_h, table_stride, num_blocks, scale_log2, softcap,
    H: tl.constexpr, K: tl.constexpr, C: tl.constexpr, C_PAD: tl.constexpr, S: tl.constexpr,
    M: tl.constexpr, TILE: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    G: tl.constexpr = H // K
    TOKENS: tl.constexpr = M // G
    kv_head = tl.program_id(0)
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    span = tl.full((), 0, tl.int32)
    beyond = num_spans
    while beyond - span > 1:  # the last span whose first tile is not after ours
        middle = (span + beyond) // 2
        before = tl.load(starts_ptr + middle) // TOKENS + middle <= tile
        span = tl.where(before, middle, span)
        beyond = tl.where(before, beyond, middle)
    start = tl.load(starts_ptr + span)
    rows = tl.load(starts_ptr + span + 1) - start
    first_row = (tile - start // TOKENS - span) * TOKENS
    if first_row >= rows:
        return
    context = tl.load(lengths_ptr + span) - rows
    places_M = tl.arange(0, M)
    rows_M = first_row + places_M // G
    heads_M = kv_head * G + places_M % G
    positions_M = context + rows_M
    columns_C = tl.arange(0, C_PAD)
    inside_MC = ((places_M < TOKENS * G) & (rows_M < rows))[:, None] & (columns_C < C)[None, :]
    at_M = (start + rows_M).to(tl.int64)
    q_at = (at_M * q_stride_p + heads_M * q_stride_h)[:, None] + columns_C[None, :]
    q_MC = tl.load(q_ptr + q_at, mask=inside_MC, other=0.0)
    acc_MC = tl.zeros((M, C_PAD), tl.float32)
    max_M = tl.full((M,), -1.0e30, tl.float32)
    sum_M = tl.zeros((M,), tl.float32)
    table_ptr = tables_ptr + span.to(tl.int64) * table_stride
    end = context + tl.minimum(first_row + TOKENS, rows)
    seen_by_all = (context + first_row + 1) // TILE * TILE
    low = 0
    if WINDOW > 0:
        low = tl.maximum(context + first_row - WINDOW + 1, 0)
        seen_by_all = low // TILE * TILE  # no unmasked part
    else:
        for first_token in range(0, seen_by_all, TILE):
            acc_MC, max_M, sum_M = attend_tile(
                q_MC, acc_MC, max_M, sum_M, positions_M, first_token, low, end,
                cache_ptr, scales_ptr, table_ptr, kv_head, num_blocks, scale_log2, softcap,
                K, C, C_PAD, S, TILE, WINDOW, SOFTCAP, SCALED, MASKED=False, CAUSAL=True,
            )  # fmt: skip
    for first_token in range(seen_by_all, end, TILE):
        acc_MC, max_M, sum_M = attend_tile(
            q_MC, acc_MC, max_M, sum_M, positions_M, first_token, low, end,
            cache_ptr, scales_ptr, table_ptr, kv_head, num_blocks, scale_log2, softcap,
            K, C, C_PAD, S, TILE, WINDOW, SOFTCAP, SCALED, MASKED=True, CAUSAL=True,
        )  # fmt: skip
    out_at = ((at_M * H + heads_M) * C)[:, None] + columns_C[None, :]
    tl.store(out_ptr + out_at, (acc_MC / sum_M[:, None]).to(out_ptr.dtype.element_ty), mask=inside_MC)


def prefill_attention(
    q_PHC: Tensor, kv_2BKSC: Tensor, spans: Sequences, starts_P: Tensor, spec: AttentionSpec
) -> Tensor:
    """Attention of the spans' rows: `[P, H, C]`. Metadata as in `AttentionMetadata`. Oracle: `attention.reference`."""
    assert q_PHC.stride(2) == 1
    tiles = tiles_for(spec.head_dim, q_PHC.element_size())
    coded = kv_2BKSC.dtype in CODE_MAX
    queries = max(64 if coded else tiles.queries, power_of_two(spec.group, 16))  # with scales, 128 spill on sm_80
    tokens = queries // spec.group
    out_PHC = torch.empty(q_PHC.shape, dtype=q_PHC.dtype, device=q_PHC.device)
    _prefill[(spec.num_kv_heads, q_PHC.shape[0] // tokens + len(spans))](
        q_PHC,
        kv_2BKSC,
        scales_view(kv_2BKSC),
        spans.tables_NM,
        spans.lengths_N,
        starts_P,
        out_PHC,
        len(spans),
        q_PHC.stride(0),
        q_PHC.stride(1),
        spans.tables_NM.stride(0),
        kv_2BKSC.shape[1],
        spec.scale * LOG2E,
        (spec.softcap or 1.0) * LOG2E,
        H=spec.num_heads,
        K=spec.num_kv_heads,
        C=spec.head_dim,
        C_PAD=power_of_two(spec.head_dim, 16),
        S=kv_2BKSC.shape[3],
        M=queries,
        TILE=tiles.tokens,
        WINDOW=spec.window or 0,
        SOFTCAP=spec.softcap is not None,
        SCALED=coded,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return out_PHC
