"""Random choices from distributions over the vocabulary, many rows at once.

Shape suffixes: R rows, V vocabulary, K the likeliest tokens of a row, in falling order.

What becomes of a row depends on that row alone, to the last bit: rows that need different work are told apart by what
they are, never by what stands beside them.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ints = npt.NDArray[np.int64]

NUCLEUS_GUESS: Final = 256
"""Top-p looks among so many tokens first: that is enough for nearly all that models say."""

ATTEMPTS: Final = 16
"""Draws from all tokens for one out of a wide nucleus, before the row is sorted."""

_CHUNK: Final = 256
"""Probabilities are summed in runs of this length before the run that a number falls into is looked at."""


@dataclass(frozen=True, slots=True)
class DrawnRows:
    """Rows of a batch that are drawn by the same rules; columns are tensors `[R]` or `[R, 1]`.

    `top_k_R` and `top_p_R` are None where no row has either.
    """

    rows: Tensor
    positions_of: Ints
    seeds_R: npt.NDArray[np.uint64]
    temperature_R1: Tensor
    min_p_R: Tensor
    top_k_R: Tensor | None
    top_p_R: Tensor | None

    def draw(self, logits_RV: Tensor, positions: Ints) -> Tensor:
        """One token for each row; `positions` is where in its sequence each row of the batch goes."""
        probs_RV = (logits_RV / self.temperature_R1).softmax(-1)
        dice = Dice(self.seeds_R, positions[self.positions_of])
        if self.top_k_R is None or self.top_p_R is None:
            return invert(drop_unlikely(probs_RV, self.min_p_R), dice.throw())
        return draw_from_nucleus(probs_RV, self.top_k_R, self.top_p_R, self.min_p_R, dice)


@dataclass(frozen=True, slots=True)
class Dice:
    """The random numbers of some rows: as many as wanted for each, told apart by `attempt`."""

    seeds_R: npt.NDArray[np.uint64]
    positions_R: Ints

    def throw(self, rows: Tensor | None = None, attempt: int = 0) -> Tensor:
        """`[R]` in [0, 1), of all rows or of those asked for."""
        chosen = slice(None) if rows is None else rows.numpy()
        return torch.from_numpy(uniform(self.seeds_R[chosen], self.positions_R[chosen], attempt))


def uniform(seeds: npt.NDArray[np.uint64], positions: Ints, attempt: int = 0) -> npt.NDArray[np.float64]:
    """One number in [0, 1) for each (seed, position) and attempt: the output function of SplitMix64 applied twice.

    Source: Steele, Lea, Flood: Fast splittable pseudorandom number generators (2014).
    """
    with np.errstate(over="ignore"):
        mixed = _mix(_mix(seeds) + positions.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        mixed = mixed if attempt == 0 else _mix(mixed + np.uint64(attempt))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def draw_from_nucleus(probs_RV: Tensor, top_k_R: Tensor, top_p_R: Tensor, min_p_R: Tensor, dice: Dice) -> Tensor:
    """A token for each row out of its nucleus. Source: arXiv 1904.09751.

    That is: at most the `top_k` likeliest (0: all), of these no more than it takes to hold `top_p` of their mass, and
    none less likely than `min_p` times the likeliest.

    A nucleus among the likeliest `NUCLEUS_GUESS` tokens is drawn from directly, a wider one by rejection, and what is
    left (a large `top_k`, a small `top_p` of a flat distribution) is sorted.
    """
    vocab = probs_RV.shape[-1]
    cuts = (top_k_R, top_p_R, min_p_R)
    tokens_R = torch.full((len(probs_RV),), -1)
    draw_among(tokens_R, probs_RV, *cuts, dice, count=min(NUCLEUS_GUESS, vocab))
    if vocab > NUCLEUS_GUESS:
        reject_until_inside(tokens_R, probs_RV, *cuts, dice)
        draw_among(tokens_R, probs_RV, *cuts, dice, count=vocab, attempt=ATTEMPTS)
    return tokens_R


def draw_among(
    tokens_R: Tensor,
    probs_RV: Tensor,
    top_k_R: Tensor,
    top_p_R: Tensor,
    min_p_R: Tensor,
    dice: Dice,
    *,
    count: int,
    attempt: int = 0,
) -> None:
    """Fill in rows without a token (-1) whose nucleus lies within the `count` likeliest tokens."""
    left = torch.where(tokens_R < 0)[0]
    if not len(left):
        return
    sorted_RK, ids_RK = largest(probs_RV[left], count)
    enough = holds_nucleus(sorted_RK, top_k_R[left], top_p_R[left], probs_RV.shape[-1])
    rows = left[enough]
    kept_RK = drop_unlikely(cut(sorted_RK[enough], top_k_R[rows], top_p_R[rows]), min_p_R[rows])
    columns_R = invert(kept_RK, dice.throw(rows, attempt))
    tokens_R[rows] = ids_RK[enough].gather(1, columns_R[:, None])[:, 0]


def reject_until_inside(
    tokens_R: Tensor, probs_RV: Tensor, top_k_R: Tensor, top_p_R: Tensor, min_p_R: Tensor, dice: Dice
) -> None:
    """Fill in rows without a token (-1) and without `top_k`: draw from all tokens until one is inside the nucleus.

    That is exact, costs no sort, and takes 1 / top_p draws at most on average. Of equally likely tokens those of lower
    id come first. Source: FlashInfer's sorting-free sampling, https://flashinfer.ai/2025/03/10/sampling.html
    """
    for attempt in range(ATTEMPTS):
        rows = torch.where((tokens_R < 0) & (top_k_R <= 0))[0]
        if not len(rows):
            return
        probs = probs_RV[rows]
        drawn_R1 = invert(probs, dice.throw(rows, attempt))[:, None]
        chance_R1 = probs.gather(1, drawn_R1)
        before_R = torch.where(probs > chance_R1, probs, 0.0).sum(-1)
        ties = probs == chance_R1
        before_R += (ties.cumsum(-1).gather(1, drawn_R1)[:, 0] - 1) * chance_R1[:, 0]
        likely = chance_R1[:, 0] >= min_p_R[rows] * probs.amax(-1)
        inside = (before_R < top_p_R[rows]) & likely
        tokens_R[rows[inside]] = drawn_R1[inside, 0]


def largest(probs_RV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` likeliest of each row in falling order, and their ids."""
    if count < probs_RV.shape[-1]:
        return probs_RV.topk(count, dim=-1)
    return probs_RV.sort(dim=-1, descending=True, stable=True)


def holds_nucleus(sorted_RK: Tensor, top_k_R: Tensor, top_p_R: Tensor, vocab: int) -> Tensor:
    """Whether a row's nucleus lies within the K tokens that were looked at."""
    looked = sorted_RK.shape[-1]
    by_count = (top_k_R > 0) & (top_k_R <= looked)
    by_mass = (top_p_R < 1) & (top_k_R <= 0) & (sorted_RK.sum(-1) >= top_p_R * (1 + 1e-6))
    return by_count | by_mass | (looked >= vocab)


def cut(sorted_RK: Tensor, top_k_R: Tensor, top_p_R: Tensor) -> Tensor:
    """Set to 0 all but the first `top_k` (0: all), and of these all but as few as hold `top_p` of their mass."""
    ranks_K = torch.arange(sorted_RK.shape[-1])
    limit_R1 = torch.where(top_k_R > 0, top_k_R, sorted_RK.shape[-1])[:, None]
    sorted_RK = sorted_RK.masked_fill(ranks_K >= limit_R1, 0.0)
    mass_R1 = torch.where(top_k_R > 0, sorted_RK.sum(-1), 1.0)[:, None]
    before_RK = sorted_RK.cumsum(-1) - sorted_RK
    # A top_p of 1 keeps everything: rounding in the sums must not cut the tail.
    beyond_RK = (before_RK >= top_p_R[:, None] * mass_R1) & (top_p_R < 1)[:, None]
    return sorted_RK.masked_fill(beyond_RK, 0.0)


def drop_unlikely(probs_RV: Tensor, min_p_R: Tensor) -> Tensor:
    """Set to 0 what is less likely than `min_p` times the likeliest token. Source: arXiv 2407.01082."""
    if not min_p_R.any():
        return probs_RV
    floor_R1 = probs_RV.amax(-1, keepdim=True) * min_p_R[:, None]
    return probs_RV.masked_fill(probs_RV < floor_R1, 0.0)


def invert(probs_RK: Tensor, uniform_R: Tensor) -> Tensor:
    """The column of each row at which its cumulated mass first exceeds `uniform` times the row's mass.

    Sums of runs say which run that is, so that only this one is cumulated one by one.
    """
    rows, columns = probs_RK.shape
    runs_RCW = torch.nn.functional.pad(probs_RK, (0, -columns % _CHUNK)).view(rows, -(-columns // _CHUNK), _CHUNK)
    run_R, share_R = _find(runs_RCW.sum(-1), uniform_R)
    column_R, _ = _find(runs_RCW[torch.arange(rows), run_R], share_R)
    return run_R * _CHUNK + column_R


def _find(masses_RC: Tensor, uniform_R: Tensor) -> tuple[Tensor, Tensor]:
    """Which of each row's masses `uniform` falls into, never one of 0, and how far into it, in [0, 1)."""
    ends_RC = masses_RC.cumsum(-1, dtype=torch.float64)
    target_R1 = uniform_R[:, None] * (1 - 1e-12) * ends_RC[:, -1:]  # below the end, whatever is rounded
    found_R1 = torch.searchsorted(ends_RC, target_R1, right=True).clamp(max=masses_RC.shape[-1] - 1)
    mass_R1 = masses_RC.gather(1, found_R1).double()
    share_R1 = (target_R1 - ends_RC.gather(1, found_R1) + mass_R1) / mass_R1
    return found_R1[:, 0], share_R1[:, 0].clamp(0.0, 1.0)
