"""How the GPU kernels read and write `kv_2BKSC`, and one tile of attention over it.

In the model's dtype a block holds, for each KV head, S rows of C numbers. In int8 and fp8 (e4m3) it holds S rows of C
codes and then S float32 scales, one a token and head: number = code * scale, the largest magnitude of a row being 127
or 448. The tensor is then `[2, B, K, S, C + 4]` bytes, so that a block with its scales can be copied as a whole.
Source of per-token-head scales: arXiv 2402.02750 (KIVI: keys and values are quantized token by token here).

Shape suffixes: M query rows of a tile (tokens times the heads of a group), N tokens of a tile.
"""

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvasir_runtime.kernels.gpu.numerics import dot, tanh, widen

SCALE_BYTES: Final = 4
CODE_MAX: Final = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""The cache dtypes that come with scales."""


def cache_width(head_dim: int, dtype: torch.dtype) -> int:
    """The last dimension of `kv_2BKSC` for a cache of `dtype`."""
    return head_dim + SCALE_BYTES if dtype in CODE_MAX else head_dim


def scales_view(kv_2BKSC: Tensor) -> Tensor:
    """The cache's memory as float32, where it holds scales; else the cache, through which no scale is read."""
    return kv_2BKSC.view(torch.float32) if kv_2BKSC.dtype in CODE_MAX else kv_2BKSC


def quantize_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes in the shape of `x` and a float32 scale for each of its rows: the oracle of what is written."""
    scales = x.float().abs().amax(-1) / CODE_MAX[dtype]
    codes = x.float() / scales.clamp(min=1e-20)[..., None]
    return (codes.round() if dtype is torch.int8 else codes).to(dtype), scales


def pack_cache(k_or_v_2BKSC: Tensor, dtype: torch.dtype) -> Tensor:
    """A cache in `dtype` that holds these numbers: the oracle of the layout."""
    if dtype not in CODE_MAX:
        return k_or_v_2BKSC.to(dtype)
    codes, scales = quantize_rows(k_or_v_2BKSC, dtype)
    parts = (codes.view(torch.uint8).flatten(-2), scales.contiguous().view(torch.uint8))
    shape = (*k_or_v_2BKSC.shape[:-1], k_or_v_2BKSC.shape[-1] + SCALE_BYTES)
    return torch.cat(parts, dim=-1).view(shape).view(dtype)


def unpack_cache(kv_2BKSC: Tensor) -> Tensor:
    """The numbers of a cache, float32 `[2, B, K, S, C]`."""
    if kv_2BKSC.dtype not in CODE_MAX:
        return kv_2BKSC.float()
    size, head_dim = kv_2BKSC.shape[3], kv_2BKSC.shape[4] - SCALE_BYTES
    flat = kv_2BKSC.view(torch.uint8).flatten(-2)
    codes = flat[..., : size * head_dim].contiguous().view(kv_2BKSC.dtype).unflatten(-1, (size, head_dim))
    unpacked: Tensor = codes.float() * flat[..., size * head_dim :].contiguous().view(torch.float32)[..., None]
    return unpacked


@triton.jit
def region_start(half, block, head, num_blocks, K: tl.constexpr, REGION: tl.constexpr):
    """Where the rows of a KV head in a block begin, in elements. `half` is 0 for keys and 1 for values."""
    return ((half * num_blocks + block.to(tl.int64)) * K + head) * REGION


@triton.jit
def load_where(ptr, at, mask, ALL: tl.constexpr):
    """What lies at `at` where `mask` is set and 0 elsewhere; with ALL it is set everywhere."""
    if ALL:
        return tl.load(ptr + at)
    else:  # noqa: RET505 - the branch is taken when the kernel is compiled
        return tl.load(ptr + at, mask=mask, other=0.0)


@triton.jit
def attend_tile(
    q_MC, acc_MC, max_M, sum_M, positions_M, first_token, low, end,
    cache_ptr, scales_ptr, table_ptr, head, num_blocks, scale_log2, softcap,
    K: tl.constexpr, C: tl.constexpr, C_PAD: tl.constexpr, S: tl.constexpr, TILE: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SCALED: tl.constexpr, MASKED: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """Fold tokens `first_token` to `first_token + TILE` into a running softmax in base 2.

    Without MASKED every row sees every token of the tile. With it, tokens below `low` and from `end` on are not read,
    and with CAUSAL rows see no token after their position, with WINDOW none further back. `softcap` is in units of
    the scores: log2.
    """
    REGION: tl.constexpr = S * (C + 4) if SCALED else S * C
    tokens_N = first_token + tl.arange(0, TILE)
    held_N = (tokens_N >= low) & (tokens_N < end)
    blocks_N = load_where(table_ptr, tokens_N // S, held_N, not MASKED)
    keys_N = region_start(0, blocks_N, head, num_blocks, K, REGION)
    values_N = region_start(1, blocks_N, head, num_blocks, K, REGION)
    columns_C = tl.arange(0, C_PAD)
    inside_NC = held_N[:, None] & (columns_C < C)[None, :] if MASKED else (columns_C < C)[None, :]
    rows_NC = (tokens_N % S * C)[:, None] + columns_C[None, :]
    WHOLE: tl.constexpr = (not MASKED) and C_PAD == C
    k_NC = load_where(cache_ptr, keys_N[:, None] + rows_NC, inside_NC, WHOLE)
    scores_MN = dot(q_MC, tl.trans(widen(k_NC, q_MC)), tl.zeros((q_MC.shape[0], TILE), tl.float32)) * scale_log2
    scales_at_N = (S * C) // 4 + tokens_N % S
    if SCALED:
        scores_MN *= load_where(scales_ptr, keys_N // 4 + scales_at_N, held_N, not MASKED)[None, :]
    if SOFTCAP:
        scores_MN = softcap * tanh(scores_MN / softcap)
    if MASKED:
        seen_MN = held_N[None, :]
        if CAUSAL:
            seen_MN = seen_MN & (tokens_N[None, :] <= positions_M[:, None])
        if WINDOW > 0:
            seen_MN = seen_MN & (tokens_N[None, :] > positions_M[:, None] - WINDOW)
        scores_MN = tl.where(seen_MN, scores_MN, -1.0e30)  # finite, so that a row may see nothing of a tile
    new_max_M = tl.maximum(max_M, tl.max(scores_MN, 1))
    weights_MN = tl.exp2(scores_MN - new_max_M[:, None])
    rescale_M = tl.exp2(max_M - new_max_M)
    sum_M = sum_M * rescale_M + tl.sum(weights_MN, 1)
    v_NC = load_where(cache_ptr, values_N[:, None] + rows_NC, inside_NC, WHOLE)
    if SCALED:
        weights_MN *= load_where(scales_ptr, values_N // 4 + scales_at_N, held_N, not MASKED)[None, :]
    acc_MC = dot(weights_MN.to(q_MC.dtype), widen(v_NC, q_MC), acc_MC * rescale_M[:, None])
    return acc_MC, new_max_M, sum_M
