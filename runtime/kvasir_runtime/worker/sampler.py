"""Chooses the next tokens of a whole batch by tensor code.

Shape suffixes: R rows to sample, V vocabulary, S seats.

A random choice takes one number u in [0, 1) from (the request's seed, the token's position) and inverts the
cumulative distribution. So a request's tokens depend on nothing else in its batch, and a preempted request draws
the same numbers again.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kvasir_runtime.core.scheduler_output import Seating
from kvasir_runtime.engine.messages import TokenLogprobs
from kvasir_runtime.structured.masks import GrammarMasks

Ints = npt.NDArray[np.int64]

_NUCLEUS_GUESS = 256
"""Top-p first looks among so many tokens; it sorts the whole vocabulary only when they do not hold enough mass."""


@dataclass(frozen=True, slots=True)
class Sampled:
    tokens_R: Tensor
    logprobs: list[TokenLogprobs | None] | None
    failed: dict[int, str] = field(default_factory=dict)
    """Rows whose grammar could not go on, with the reason."""


class Sampler:
    """Sampling parameters of all seats as columns, and the tables that penalties need."""

    def __init__(self, num_seats: int, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._temperature = np.zeros(num_seats, dtype=np.float32)
        self._top_p = np.ones(num_seats, dtype=np.float32)
        self._top_k = np.zeros(num_seats, dtype=np.int64)
        self._min_p = np.zeros(num_seats, dtype=np.float32)
        self._seed = np.zeros(num_seats, dtype=np.uint64)
        self._min_length = np.zeros(num_seats, dtype=np.int64)
        self._logprobs = np.full(num_seats, -1, dtype=np.int64)
        self._repetition = np.ones(num_seats, dtype=np.float32)
        self._presence = np.zeros(num_seats, dtype=np.float32)
        self._frequency = np.zeros(num_seats, dtype=np.float32)
        self._penalized = np.zeros(num_seats, dtype=bool)
        self._biased: dict[int, tuple[Tensor, Tensor]] = {}
        self._stop_ids: dict[int, Tensor] = {}
        self._grammars = GrammarMasks(vocab_size)
        self._in_prompt_SV: Tensor | None = None
        self._output_counts_SV: Tensor | None = None

    def seat(self, seating: Seating) -> None:
        """Take over the parameters of a seat's new sequence."""
        seat, params = seating.seat, seating.sampling
        self._temperature[seat], self._seed[seat] = params.temperature, seating.seed
        self._top_p[seat], self._top_k[seat], self._min_p[seat] = params.top_p, params.top_k, params.min_p
        self._logprobs[seat] = -1 if params.logprobs is None else params.logprobs
        self._min_length[seat] = seating.num_prompt_tokens + params.min_tokens
        self._repetition[seat] = params.repetition_penalty
        self._presence[seat], self._frequency[seat] = params.presence_penalty, params.frequency_penalty
        self._biased.pop(seat, None)
        if params.logit_bias:
            ids, values = list(params.logit_bias), list(params.logit_bias.values())
            self._biased[seat] = (torch.tensor(ids), torch.tensor(values, dtype=torch.float32))
        self._stop_ids.pop(seat, None)
        self._grammars.seat(seating)
        if params.min_tokens > 0 and seating.stop_token_ids and seating.grammar is None:
            self._stop_ids[seat] = torch.tensor(sorted(seating.stop_token_ids))
        self._penalized[seat] = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) != (
            1,
            0,
            0,
        )
        if self._penalized[seat]:
            self._count_tokens(seating)

    def sample(self, logits_RV: Tensor, seats: Ints, positions: Ints) -> Sampled:
        """Choose a token for each row; `positions` is where in its sequence it goes. May overwrite `logits_RV`."""
        raw_RV = logits_RV.log_softmax(-1) if (self._logprobs[seats] >= 0).any() else None
        self._adjust(logits_RV, seats, positions)
        failed = self._grammars.apply(logits_RV, seats, positions)
        tokens_R = logits_RV.argmax(-1)
        random = self._temperature[seats] > 0
        if random.any():
            rows = np.flatnonzero(random)
            tokens_R[rows] = self._draw(
                logits_RV[rows] if len(rows) < len(seats) else logits_RV, seats[rows], positions[rows]
            )
        if self._penalized[seats].any():
            assert self._output_counts_SV is not None
            one = torch.ones((), dtype=self._output_counts_SV.dtype)
            self._output_counts_SV.index_put_((torch.from_numpy(seats), tokens_R), one, accumulate=True)
        self._grammars.advance(seats, tokens_R)
        return Sampled(tokens_R, None if raw_RV is None else self._report(raw_RV, tokens_R, seats), failed)

    def _adjust(self, logits_RV: Tensor, seats: Ints, positions: Ints) -> None:
        if self._penalized[seats].any():
            self._penalize(logits_RV, seats)
        if self._biased:
            for row, seat in enumerate(seats.tolist()):
                if seat in self._biased:
                    ids, values = self._biased[seat]
                    logits_RV[row].index_add_(0, ids, values)
        if self._stop_ids:
            for row in np.flatnonzero(positions < self._min_length[seats]).tolist():
                if int(seats[row]) in self._stop_ids:
                    logits_RV[row, self._stop_ids[int(seats[row])]] = float("-inf")

    def _penalize(self, logits_RV: Tensor, seats: Ints) -> None:
        """Repetition over prompt and output (arXiv 1909.05858), presence and frequency over the output (OpenAI)."""
        assert self._in_prompt_SV is not None
        assert self._output_counts_SV is not None
        rows = np.flatnonzero(self._penalized[seats])
        chosen = seats[rows]
        logits, counts = logits_RV[rows], self._output_counts_SV[chosen]
        repetition_R1, presence_R1, frequency_R1 = (
            torch.from_numpy(column[chosen])[:, None] for column in (self._repetition, self._presence, self._frequency)
        )
        penalized = torch.where(logits > 0, logits / repetition_R1, logits * repetition_R1)
        logits = torch.where((counts > 0) | self._in_prompt_SV[chosen], penalized, logits)
        logits_RV[rows] = logits - frequency_R1 * counts - presence_R1 * (counts > 0)

    def _count_tokens(self, seating: Seating) -> None:
        if self._in_prompt_SV is None or self._output_counts_SV is None:
            shape = (len(self._seed), self.vocab_size)
            self._in_prompt_SV = torch.zeros(shape, dtype=torch.bool)
            self._output_counts_SV = torch.zeros(shape, dtype=torch.int32)
        tokens = torch.tensor(seating.token_ids, dtype=torch.int64)
        prompt, output = tokens[: seating.num_prompt_tokens], tokens[seating.num_prompt_tokens :]
        self._in_prompt_SV[seating.seat] = False
        self._in_prompt_SV[seating.seat, prompt] = True
        self._output_counts_SV[seating.seat] = torch.bincount(output, minlength=self.vocab_size)

    def _draw(self, logits_RV: Tensor, seats: Ints, positions: Ints) -> Tensor:
        temperature_R1 = torch.from_numpy(self._temperature[seats])[:, None]
        probs_RV = (logits_RV / temperature_R1).softmax(-1)
        uniform_R = torch.from_numpy(uniform(self._seed[seats], positions))
        min_p_R = torch.from_numpy(self._min_p[seats])
        sorts = (self._top_k[seats] > 0) | (self._top_p[seats] < 1)
        if not sorts.any():
            return invert(drop_unlikely(probs_RV, min_p_R), uniform_R)
        # Rows with and without a cut are drawn apart: each row must see the same order of tokens in every batch.
        tokens_R = torch.empty(len(seats), dtype=torch.int64)
        cut, whole = np.flatnonzero(sorts), np.flatnonzero(~sorts)
        tokens_R[whole] = invert(drop_unlikely(probs_RV[whole], min_p_R[whole]), uniform_R[whole])
        top_k_R, top_p_R = torch.from_numpy(self._top_k[seats[cut]]), torch.from_numpy(self._top_p[seats[cut]])
        kept_RK, ids_RK = nucleus(probs_RV[cut], top_k_R, top_p_R)
        choice_R = invert(drop_unlikely(kept_RK, min_p_R[cut]), uniform_R[cut])
        tokens_R[cut] = ids_RK.gather(1, choice_R[:, None])[:, 0]
        return tokens_R

    def _report(self, raw_RV: Tensor, tokens_R: Tensor, seats: Ints) -> list[TokenLogprobs | None]:
        wanted = self._logprobs[seats]
        rows = np.flatnonzero(wanted >= 0)
        reports = token_logprobs(raw_RV[rows], tokens_R[rows], wanted[rows].tolist())
        by_row = dict(zip(rows.tolist(), reports, strict=True))
        return [by_row.get(row) for row in range(len(seats))]


def uniform(seeds: npt.NDArray[np.uint64], positions: Ints) -> npt.NDArray[np.float64]:
    """One number in [0, 1) for each (seed, position): the output function of SplitMix64 applied twice.

    Source: Steele, Lea, Flood: Fast splittable pseudorandom number generators (2014).
    """
    with np.errstate(over="ignore"):
        mixed = _mix(_mix(seeds) + positions.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def drop_unlikely(probs_RV: Tensor, min_p_R: Tensor) -> Tensor:
    """Set to 0 what is less likely than `min_p` times the likeliest token. Source: arXiv 2407.01082."""
    if not min_p_R.any():
        return probs_RV
    floor_R1 = probs_RV.amax(-1, keepdim=True) * min_p_R[:, None]
    return probs_RV.masked_fill(probs_RV < floor_R1, 0.0)


def nucleus(probs_RV: Tensor, top_k_R: Tensor, top_p_R: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest tokens of each row in falling order, and their ids; what is cut has probability 0.

    Kept are at most `top_k` (0: all), and of those as few as hold `top_p` of their mass. Source: arXiv 1904.09751.
    """
    vocab = probs_RV.shape[-1]
    limit_R = torch.where(top_k_R > 0, top_k_R, vocab).clamp(max=vocab)
    guess = min(vocab, max(_NUCLEUS_GUESS, int(top_k_R.max())))
    sorted_RK, ids_RK = probs_RV.topk(guess, dim=-1)
    open_R = limit_R > guess
    if open_R.any() and bool((sorted_RK[open_R].sum(-1) < top_p_R[open_R] * (1 + 1e-6)).any()):
        sorted_RK, ids_RK = probs_RV.sort(dim=-1, descending=True)
    ranks_K = torch.arange(sorted_RK.shape[-1])
    sorted_RK = sorted_RK.masked_fill(ranks_K >= limit_R[:, None], 0.0)
    mass_R1 = torch.where(top_k_R > 0, sorted_RK.sum(-1), 1.0)[:, None]
    before_RK = sorted_RK.cumsum(-1) - sorted_RK
    # A top_p of 1 keeps everything: rounding in the sums must not cut the tail.
    beyond_RK = (before_RK >= top_p_R[:, None] * mass_R1) & (top_p_R < 1)[:, None]
    return sorted_RK.masked_fill(beyond_RK, 0.0), ids_RK


def invert(probs_RK: Tensor, uniform_R: Tensor) -> Tensor:
    """The column of each row at which its cumulated mass first exceeds `uniform` times the row's mass."""
    cumulated_RK = probs_RK.cumsum(-1, dtype=torch.float64)
    target_R1 = uniform_R[:, None] * cumulated_RK[:, -1:]
    columns_R = torch.searchsorted(cumulated_RK, target_R1, right=True)[:, 0]
    return columns_R.clamp(max=probs_RK.shape[-1] - 1)


def token_logprobs(logprobs_RV: Tensor, tokens_R: Tensor, counts: list[int]) -> list[TokenLogprobs]:
    """Log-probability and rank of each row's token, and the row's `counts` likeliest alternatives."""
    chosen_R1 = logprobs_RV.gather(1, tokens_R[:, None])
    ranks = (logprobs_RV > chosen_R1).sum(-1).tolist()
    values_RK, ids_RK = logprobs_RV.topk(max(counts, default=0), dim=-1)
    rows = zip(
        tokens_R.tolist(), chosen_R1[:, 0].tolist(), ranks, values_RK.tolist(), ids_RK.tolist(), counts, strict=True
    )
    return [
        TokenLogprobs(token, logprob, rank, list(zip(ids[:count], values[:count], strict=True)))
        for token, logprob, rank, values, ids, count in rows
    ]
