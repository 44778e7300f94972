"""Drawing a token of each row within top-k, top-p and min-p, without sorting the vocabulary.

What is kept is everything likelier than a threshold, and the first few of what is exactly as likely. The threshold is
found by bisection over the bits of the chances (relative to the likeliest, so that they are in [0, 1], where the bits
of a float grow with it), each step of which reads the row once more, out of the L2 cache. Then the cumulated chances
of what is kept, in the order of the ids, are inverted at the row's random number.
Source of the thresholds: FlashInfer's sorting-free sampling, https://flashinfer.ai/2025/03/10/sampling.html

Shape suffixes: R rows, V vocabulary.
"""

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE: Final = 2048
ONE: Final = tl.constexpr(0x3F800000)
"""The bits of 1.0: those of the likeliest token's chance."""
ALL: Final = tl.constexpr(1 << 30)


@triton.jit
def _chances(logits_ptr, start, vocab, highest, inverse_temperature, TILE: tl.constexpr):
    """Chances of a tile's tokens relative to the likeliest, their bits, and the ids."""
    ids = start + tl.arange(0, TILE)
    logits = tl.load(logits_ptr + ids, mask=ids < vocab, other=float("-inf"))
    chances = tl.exp((logits - highest) * inverse_temperature)
    return chances, chances.to(tl.int32, bitcast=True), ids


@triton.jit
def _above(logits_ptr, vocab, highest, inverse_temperature, bits, TILE: tl.constexpr):
    """How many tokens have a chance of at least `bits`, and their mass."""
    count = tl.full((), 0, tl.int32)
    mass = tl.full((), 0.0, tl.float32)
    for start in range(0, vocab, TILE):
        chances, found, ids = _chances(logits_ptr, start, vocab, highest, inverse_temperature, TILE)
        kept = (found >= bits) & (ids < vocab)
        count += tl.sum(kept.to(tl.int32), 0)
        mass += tl.sum(tl.where(kept, chances, 0.0), 0)
    return count, mass


@triton.jit
def _threshold(logits_ptr, vocab, highest, inverse_temperature, count, mass, TILE: tl.constexpr):
    """The largest bits with at least `count` tokens and at least `mass` not below them; 0 where nothing has."""
    low = tl.full((), 0, tl.int32)
    high = tl.full((), 0, tl.int32) + ONE + 1
    while high - low > 1:
        middle = (low + high) // 2
        found_count, found_mass = _above(logits_ptr, vocab, highest, inverse_temperature, middle, TILE)
        enough = (found_count >= count) & (found_mass >= mass)
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    return low


@triton.jit
def _sample(
    logits_ptr, settings_ptr, tokens_ptr, vocab, stride, num_rows, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    logits_ptr += row.to(tl.int64) * stride
    temperature = tl.load(settings_ptr + row)
    top_k = tl.load(settings_ptr + num_rows + row).to(tl.int32)
    top_p = tl.load(settings_ptr + 2 * num_rows + row)
    min_p = tl.load(settings_ptr + 3 * num_rows + row)
    random = tl.load(settings_ptr + 4 * num_rows + row)
    highest = tl.full((), float("-inf"), tl.float32)
    likeliest = tl.full((), 0, tl.int32)
    for start in range(0, vocab, TILE):
        ids = start + tl.arange(0, TILE)
        logits = tl.load(logits_ptr + ids, mask=ids < vocab, other=float("-inf"))
        in_tile = tl.max(logits, 0)
        first = tl.min(tl.where(logits == in_tile, ids, vocab), 0)
        likeliest = tl.where(in_tile > highest, first, likeliest)
        highest = tl.maximum(highest, in_tile)
    if temperature <= 0:
        tl.store(tokens_ptr + row, likeliest.to(tl.int64))
        return
    inverse = 1.0 / temperature
    bits = tl.full((), 0, tl.int32)  # tokens above are kept, and `ties` of those that have exactly these
    ties = tl.full((), 0, tl.int32) + ALL
    _, mass = _above(logits_ptr, vocab, highest, inverse, 0, TILE)
    if (top_k > 0) & (top_k < vocab):
        bits = _threshold(logits_ptr, vocab, highest, inverse, top_k, 0.0, TILE)
        count, mass = _above(logits_ptr, vocab, highest, inverse, bits + 1, TILE)
        ties = top_k - count
        mass += ties.to(tl.float32) * bits.to(tl.float32, bitcast=True)
    if top_p < 1.0:
        needed = top_p * mass
        nucleus = tl.maximum(_threshold(logits_ptr, vocab, highest, inverse, 0, needed, TILE), bits)
        _, above = _above(logits_ptr, vocab, highest, inverse, nucleus + 1, TILE)
        chance = tl.maximum(nucleus.to(tl.float32, bitcast=True), 1e-38)
        wanted = tl.maximum(tl.ceil(tl.minimum((needed - above) / chance, 1e9)).to(tl.int32), 1)
        ties = tl.where(nucleus > bits, wanted, tl.minimum(ties, wanted))
        bits = nucleus
    floor = min_p.to(tl.int32, bitcast=True)
    ties = tl.where(floor > bits, ALL, ties)
    bits = tl.maximum(bits, floor)
    # Ties are kept in the order of the ids: the mass of what is kept, then the token that the number falls into.
    same, _ = _above(logits_ptr, vocab, highest, inverse, bits, TILE)
    more, kept_mass = _above(logits_ptr, vocab, highest, inverse, bits + 1, TILE)
    kept_mass += tl.minimum(ties, same - more).to(tl.float32) * bits.to(tl.float32, bitcast=True)
    target = random * kept_mass
    passed = tl.full((), 0.0, tl.float32)
    seen = tl.full((), 0, tl.int32)
    drawn = tl.full((), 0, tl.int32) + vocab
    last = likeliest
    for start in range(0, vocab, TILE):
        chances, found, ids = _chances(logits_ptr, start, vocab, highest, inverse, TILE)
        tied = ((found == bits) & (ids < vocab)).to(tl.int32)
        in_time = (tied > 0) & (seen + tl.cumsum(tied, 0) <= ties)
        weights = tl.where((found > bits) | in_time, chances, 0.0)
        ends = passed + tl.cumsum(weights, 0)
        drawn = tl.minimum(drawn, tl.min(tl.where((ends > target) & (weights > 0), ids, vocab), 0))
        last = tl.maximum(last, tl.max(tl.where(weights > 0, ids, 0), 0))
        passed += tl.sum(weights, 0)
        seen += tl.sum(tied, 0)
    tl.store(tokens_ptr + row, tl.where(drawn < vocab, drawn, last).to(tl.int64))


def sample(logits_RV: Tensor, settings_5R: Tensor) -> Tensor:
    """A token of each row, int64 `[R]`.

    `settings_5R`, float32: temperatures (0: the likeliest, of several the first), top-k (0: all), top-p (1: all), min-p
    (0: all) and random numbers in [0, 1).
    """
    assert logits_RV.dtype == settings_5R.dtype == torch.float32
    assert logits_RV.stride(1) == 1
    assert settings_5R.is_contiguous()
    rows, vocab = logits_RV.shape
    tokens_R = torch.empty(rows, dtype=torch.int64, device=logits_RV.device)
    _sample[(rows,)](logits_RV, settings_5R, tokens_R, vocab, logits_RV.stride(0), rows, TILE=TILE, num_warps=8)
    return tokens_R


def kept_oracle(logits_V: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Chances of one row's tokens, 0 of those that are cut off, in float64: by sorting."""
    probs_V, ids_V = (logits_V.double() / temperature).softmax(0).sort(descending=True, stable=True)
    kept_V = probs_V.clone()
    kept_V[top_k or len(probs_V) :] = 0
    if top_p < 1:
        before_V = kept_V.cumsum(0) - kept_V
        kept_V[before_V >= top_p * kept_V.sum()] = 0
    kept_V[probs_V < min_p * probs_V[0]] = 0
    return torch.zeros_like(kept_V).scatter(0, ids_V, kept_V)


def sample_oracle(logits_V: Tensor, settings_5: list[float]) -> int:
    """One row."""
    temperature, top_k, top_p, min_p, random = settings_5
    if temperature == 0:
        return int(logits_V.argmax())
    ends_V = kept_oracle(logits_V, temperature, int(top_k), top_p, min_p).cumsum(0)
    return int(torch.searchsorted(ends_V, random * ends_V[-1:], right=True).clamp(max=len(ends_V) - 1))
