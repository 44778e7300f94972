"""RoPE of queries and keys, and the write of keys and values to their blocks, in one pass over a step's projections.

A program takes one row and a few heads; programs of query heads come first. Rows with a negative slot (padding) write
nothing to the cache. Source of RoPE: arXiv 2104.09864; of the formats of the cache: `paged_kv`.

Shape suffixes: as in `attention.backend`; F half a head's columns, A heads of a program.
"""

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvasir_runtime.kernels.gpu.numerics import power_of_two, to_fp8, to_int8
from kvasir_runtime.kernels.gpu.paged_kv import CODE_MAX, region_start, scales_view

HEADS_AT_ONCE: Final = 8


@triton.jit
def _halves(ptr, row, stride_t, stride_h, heads_A, columns_F, inside_AF, F: tl.constexpr):
    at_AF = row.to(tl.int64) * stride_t + heads_A[:, None] * stride_h + columns_F[None, :]
    left = tl.load(ptr + at_AF, mask=inside_AF, other=0.0).to(tl.float32)
    right = tl.load(ptr + at_AF + F, mask=inside_AF, other=0.0).to(tl.float32)
    return left, right


@triton.jit
def _store_row(
    cache_ptr, scales_ptr, half, block, offset, heads_A, num_blocks, left, right, columns_F, inside_AF, held_A,
    K: tl.constexpr, S: tl.constexpr, F: tl.constexpr, CODES: tl.constexpr,
):  # fmt: skip
    C: tl.constexpr = 2 * F
    REGION: tl.constexpr = S * (C + 4) if CODES != "none" else S * C
    region_A = region_start(half, block, heads_A.to(tl.int64), num_blocks, K, REGION)
    at_AF = (region_A + offset * C)[:, None] + columns_F[None, :]
    if CODES == "none":
        dtype = cache_ptr.dtype.element_ty
        tl.store(cache_ptr + at_AF, left.to(dtype), mask=inside_AF)
        tl.store(cache_ptr + at_AF + F, right.to(dtype), mask=inside_AF)
    else:
        largest_A = tl.maximum(tl.max(tl.abs(left), 1), tl.max(tl.abs(right), 1))
        scale_A = largest_A / (127.0 if CODES == "int8" else 448.0)
        inverse_A1 = (1.0 / tl.maximum(scale_A, 1e-20))[:, None]
        tl.store(scales_ptr + region_A // 4 + (S * C) // 4 + offset, scale_A, mask=held_A)
        if CODES == "int8":
            tl.store(cache_ptr + at_AF, to_int8(left * inverse_A1), mask=inside_AF)
            tl.store(cache_ptr + at_AF + F, to_int8(right * inverse_A1), mask=inside_AF)
        else:
            tl.store(cache_ptr + at_AF, to_fp8(left * inverse_A1), mask=inside_AF)
            tl.store(cache_ptr + at_AF + F, to_fp8(right * inverse_A1), mask=inside_AF)


@triton.jit
def _rope_write(
    q_ptr, k_ptr, v_ptr, out_ptr, cache_ptr, scales_ptr, cos_sin_ptr, positions_ptr, slots_ptr, num_blocks,
    q_stride_t, q_stride_h, k_stride_t, k_stride_h, v_stride_t, v_stride_h,
    H: tl.constexpr, K: tl.constexpr, S: tl.constexpr, F: tl.constexpr, F_PAD: tl.constexpr,
    A: tl.constexpr, CODES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    part = tl.program_id(1)
    QUERY_PARTS: tl.constexpr = (H + A - 1) // A
    columns_F = tl.arange(0, F_PAD)
    turns = cos_sin_ptr + tl.load(positions_ptr + row) * (2 * F) + columns_F
    cos = tl.load(turns, mask=columns_F < F, other=0.0)[None, :]
    sin = tl.load(turns + F, mask=columns_F < F, other=0.0)[None, :]
    if part < QUERY_PARTS:
        heads_A = part * A + tl.arange(0, A)
        inside_AF = (heads_A < H)[:, None] & (columns_F < F)[None, :]
        left, right = _halves(q_ptr, row, q_stride_t, q_stride_h, heads_A, columns_F, inside_AF, F)
        out_at = (row.to(tl.int64) * H + heads_A[:, None]) * (2 * F) + columns_F[None, :]
        dtype = out_ptr.dtype.element_ty
        tl.store(out_ptr + out_at, (left * cos - right * sin).to(dtype), mask=inside_AF)
        tl.store(out_ptr + out_at + F, (right * cos + left * sin).to(dtype), mask=inside_AF)
    else:
        slot = tl.load(slots_ptr + row)
        if slot < 0:
            return
        heads_A = (part - QUERY_PARTS) * A + tl.arange(0, A)
        held_A = heads_A < K
        inside_AF = held_A[:, None] & (columns_F < F)[None, :]
        block = slot // S
        offset = slot % S
        left, right = _halves(k_ptr, row, k_stride_t, k_stride_h, heads_A, columns_F, inside_AF, F)
        _store_row(
            cache_ptr, scales_ptr, 0, block, offset, heads_A, num_blocks,
            left * cos - right * sin, right * cos + left * sin, columns_F, inside_AF, held_A, K, S, F, CODES,
        )  # fmt: skip
        left, right = _halves(v_ptr, row, v_stride_t, v_stride_h, heads_A, columns_F, inside_AF, F)
        _store_row(
            cache_ptr, scales_ptr, 1, block, offset, heads_A, num_blocks,
            left, right, columns_F, inside_AF, held_A, K, S, F, CODES,
        )  # fmt: skip


def rope_and_write(
    q_THC: Tensor,
    k_TKC: Tensor,
    v_TKC: Tensor,
    cos_sin_LC: Tensor,
    kv_2BKSC: Tensor,
    positions_T: Tensor,
    slots_T: Tensor,
) -> Tensor:
    """As `AttentionBackend.write_kv`: rotated queries `[T, H, C]`, keys and values in the cache.

    Oracle: `attention.reference`, and `paged_kv.pack_cache` for caches with scales.
    """
    assert q_THC.stride(2) == k_TKC.stride(2) == v_TKC.stride(2) == 1
    rows, heads, head_dim = q_THC.shape
    kv_heads = k_TKC.shape[1]
    out_THC = torch.empty(q_THC.shape, dtype=q_THC.dtype, device=q_THC.device)
    at_once = min(HEADS_AT_ONCE, power_of_two(heads))
    _rope_write[(rows, -(-heads // at_once) + -(-kv_heads // at_once))](
        q_THC,
        k_TKC,
        v_TKC,
        out_THC,
        kv_2BKSC,
        scales_view(kv_2BKSC),
        cos_sin_LC,
        positions_T,
        slots_T,
        kv_2BKSC.shape[1],
        q_THC.stride(0),
        q_THC.stride(1),
        k_TKC.stride(0),
        k_TKC.stride(1),
        v_TKC.stride(0),
        v_TKC.stride(1),
        H=heads,
        K=kv_heads,
        S=kv_2BKSC.shape[3],
        F=head_dim // 2,
        F_PAD=power_of_two(head_dim // 2),
        A=at_once,
        CODES=_codes(kv_2BKSC.dtype),
        num_warps=4,
    )
    return out_THC


def _codes(dtype: torch.dtype) -> str:
    if dtype not in CODE_MAX:
        return "none"
    return "int8" if dtype is torch.int8 else "fp8"
