"""Decode attention of rows that share a prefix: the prefix is read once for all of them, the rest for each.

The queries of a group's rows, each with all heads of a KV head, are the rows of one matrix multiplication over the
prefix, which is cut into parts of equal length. What is left of each row is decoded as usual, and the two are merged
by their log-sum-exp. Source: arXiv 2405.02929 (Hydragen), https://flashinfer.ai/2024/02/02/cascade-inference.html

Shape suffixes: N rows, G groups, P parts of a prefix, M rows of a tile; others as in `attention.backend`.
"""

from dataclasses import dataclass
from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvasir_runtime.attention.metadata import AttentionSpec, Sequences
from kvasir_runtime.kernels.gpu.decode_attention import SplitPlan, decode_parts
from kvasir_runtime.kernels.gpu.groups import group_of_tile
from kvasir_runtime.kernels.gpu.merge import merge_parts
from kvasir_runtime.kernels.gpu.numerics import LOG2E, power_of_two
from kvasir_runtime.kernels.gpu.paged_kv import CODE_MAX, attend_tile, scales_view
from kvasir_runtime.kernels.gpu.prefill_attention import tiles_for

PARTS: Final = 8
"""Of a prefix: 1,024 tokens each at 8k, so that 8 KV heads and one tile of rows are 64 programs."""
QUERIES: Final = 64
"""Rows of a tile: with 128, the compiler spills registers for sm_80."""
NO_PART: Final = tl.constexpr(-2.0e30)


@dataclass(frozen=True, slots=True)
class SharedPrefixes:
    """Rows `starts[g]` to `starts[g + 1]` share the first `lengths[g]` tokens, which are whole blocks; 0 for none.

    `starts_G1` covers all rows. Both int32. Each row is longer than its prefix.
    """

    starts_G1: Tensor
    lengths_G: Tensor


@triton.jit
def _prefix(
    q_ptr, cache_ptr, scales_ptr, tables_ptr, lengths_ptr, starts_ptr, prefixes_ptr, parts_ptr, lse_ptr,
    num_groups, num_rows, q_stride_n, q_stride_h, table_stride, num_blocks, scale_log2, softcap,
    H: tl.constexpr, K: tl.constexpr, C: tl.constexpr, C_PAD: tl.constexpr, S: tl.constexpr, M: tl.constexpr,
    P: tl.constexpr, TILE: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    G: tl.constexpr = H // K
    ROWS: tl.constexpr = M // G
    kv_head = tl.program_id(0)
    part = tl.program_id(2)
    group, first, last = group_of_tile(starts_ptr, num_groups, tl.program_id(1), ROWS)
    if first >= last:
        return
    places_M = tl.arange(0, M)
    rows_M = first + places_M // G
    heads_M = kv_head * G + places_M % G
    there_M = (places_M < ROWS * G) & (rows_M < last)
    at_M = (part.to(tl.int64) * num_rows + rows_M) * H + heads_M
    prefix = tl.load(prefixes_ptr + group)
    chunk = ((prefix + P - 1) // P + TILE - 1) // TILE * TILE
    begin = part * chunk
    if begin >= prefix:
        tl.store(lse_ptr + at_M, tl.full((M,), NO_PART, tl.float32), mask=there_M)
        return
    end = tl.minimum(begin + chunk, prefix)
    columns_C = tl.arange(0, C_PAD)
    inside_MC = there_M[:, None] & (columns_C < C)[None, :]
    q_at = (rows_M.to(tl.int64) * q_stride_n + heads_M * q_stride_h)[:, None] + columns_C[None, :]
    q_MC = tl.load(q_ptr + q_at, mask=inside_MC, other=0.0)
    positions_M = tl.load(lengths_ptr + rows_M, mask=there_M, other=0) - 1
    acc_MC = tl.zeros((M, C_PAD), tl.float32)
    max_M = tl.full((M,), -1.0e30, tl.float32)
    sum_M = tl.zeros((M,), tl.float32)
    table_ptr = tables_ptr + tl.load(starts_ptr + group).to(tl.int64) * table_stride
    low = 0
    if WINDOW > 0:  # tokens that no row of the tile sees may be gone
        low = tl.maximum(tl.min(tl.where(there_M, positions_M, 1 << 30), 0) - WINDOW + 1, 0)
        begin = tl.maximum(begin, low // TILE * TILE)
    for first_token in range(begin, end, TILE):
        acc_MC, max_M, sum_M = attend_tile(
            q_MC, acc_MC, max_M, sum_M, positions_M, first_token, low, end,
            cache_ptr, scales_ptr, table_ptr, kv_head, num_blocks, scale_log2, softcap,
            K, C, C_PAD, S, TILE, WINDOW, SOFTCAP, SCALED, MASKED=True, CAUSAL=False,
        )  # fmt: skip
    seen_M = max_M > -1.0e29  # a window may have passed the whole part
    sum_M = tl.where(seen_M, sum_M, 1.0)
    tl.store(parts_ptr + at_M[:, None] * C + columns_C[None, :], acc_MC / sum_M[:, None], mask=inside_MC)
    tl.store(lse_ptr + at_M, tl.where(seen_M, max_M + tl.log2(sum_M), NO_PART), mask=there_M)


def cascade_decode(
    q_NHC: Tensor,
    kv_2BKSC: Tensor,
    sequences: Sequences,
    spec: AttentionSpec,
    prefixes: SharedPrefixes,
    plan: SplitPlan,
) -> Tensor:
    """As `decode_attention`; `plan` is that of the rest of each row, made with `begins_of`."""
    assert q_NHC.stride(2) == 1
    rows, heads, head_dim = q_NHC.shape
    tiles = tiles_for(head_dim, q_NHC.element_size())
    queries = max(QUERIES, power_of_two(spec.group, 16))
    groups = len(prefixes.lengths_G)
    shared_PNHC = q_NHC.new_empty((PARTS, rows, heads, head_dim), dtype=torch.float32)
    shared_PNH = q_NHC.new_empty((PARTS, rows, heads), dtype=torch.float32)
    _prefix[(spec.num_kv_heads, rows // (queries // spec.group) + groups, PARTS)](
        q_NHC,
        kv_2BKSC,
        scales_view(kv_2BKSC),
        sequences.tables_NM,
        sequences.lengths_N,
        prefixes.starts_G1,
        prefixes.lengths_G,
        shared_PNHC,
        shared_PNH,
        groups,
        rows,
        q_NHC.stride(0),
        q_NHC.stride(1),
        sequences.tables_NM.stride(0),
        kv_2BKSC.shape[1],
        spec.scale * LOG2E,
        (spec.softcap or 1.0) * LOG2E,
        H=heads,
        K=spec.num_kv_heads,
        C=head_dim,
        C_PAD=power_of_two(head_dim, 16),
        S=kv_2BKSC.shape[3],
        M=queries,
        P=PARTS,
        TILE=tiles.tokens,
        WINDOW=spec.window or 0,
        SOFTCAP=spec.softcap is not None,
        SCALED=kv_2BKSC.dtype in CODE_MAX,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    out_NHC = torch.empty(q_NHC.shape, dtype=q_NHC.dtype, device=q_NHC.device)
    parts_IHC, lse_IH = decode_parts(q_NHC, kv_2BKSC, sequences, spec, plan, None)
    merge_parts(out_NHC, parts_IHC, lse_IH, plan.starts_N1, (shared_PNHC, shared_PNH))
    return out_NHC


def begins_of(prefixes: SharedPrefixes) -> Tensor:
    """Where the rest of each row begins, for `plan_splits`: int32 `[N]`."""
    return prefixes.lengths_G.repeat_interleave(prefixes.starts_G1.diff())
