"""Chooses the next tokens of a whole batch by tensor code.

Shape suffixes: R rows to sample, V vocabulary, S seats.

What a batch needs to know of its sequences is worked out when other seats take part than in the step before, from
columns that are written when a sequence is seated; the steps between only compute.

A random choice takes one number u in [0, 1) from (the request's seed, the token's position) and inverts the
cumulative distribution. So a request's tokens depend on nothing else in its batch, and a preempted request draws
the same numbers again.

Where the logits are on a GPU, rows that ask for nothing but temperature and cuts are drawn there, by its own kernel,
and only the logits of the others come to the host. Which of the two it is depends on the request alone; for a seed
they may draw different tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kvasir_runtime.contract.memory import SAMPLED_AT_ONCE
from kvasir_runtime.core.scheduler_output import Seating
from kvasir_runtime.engine.messages import TokenLogprobs
from kvasir_runtime.sampling_params import SamplingParams
from kvasir_runtime.structured.masks import GrammarMasks
from kvasir_runtime.worker.distributions import DrawnRows, uniform
from kvasir_runtime.worker.logprobs import token_logprobs
from kvasir_runtime.worker.penalties import PenalizedRows, Penalties
from kvasir_runtime.worker.seat_tokens import SeatTokens

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

Draw = Callable[[Tensor, Floats], Tensor]
"""Draws where the logits are: takes `[R, V]` and the settings `[5, R]` of `kernels.gpu.sampling`, returns `[R]`."""


@dataclass(frozen=True, slots=True)
class Sampled:
    tokens_R: Tensor
    logprobs: list[TokenLogprobs | None] | None
    failed: dict[int, str] = field(default_factory=dict)
    """Rows whose grammar could not go on, with the reason."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """What the rows on `seats` ask for; valid until others take part or one of the seats gets a new sequence.

    Biases and stop tokens are given by their places in the flat logits; a stop token is forbidden while its row's
    position is below `stop_until`.
    """

    seats: Ints
    drawn: list[DrawnRows]
    all_drawn: bool
    penalized: PenalizedRows
    bias_places: Tensor
    bias_values: Tensor
    stop_rows: Ints
    stop_places: Ints
    stop_until: npt.NDArray[np.float32]
    logprob_rows: Ints
    logprob_counts: list[int]


class Sampler:
    """Sampling parameters of all seats as columns. `token_ids`, `[S, max_model_len + 1]`, is the runner's table."""

    def __init__(
        self, num_seats: int, vocab_size: int, token_ids: npt.NDArray[np.int32], draw: Draw | None = None
    ) -> None:
        """`draw`: the device's own way, for rows that it is enough for."""
        self.vocab_size = vocab_size
        self._draw = draw
        self._drawn_there = np.zeros(num_seats, dtype=bool)
        self._temperature = np.zeros(num_seats, dtype=np.float32)
        self._top_p = np.ones(num_seats, dtype=np.float32)
        self._top_k = np.zeros(num_seats, dtype=np.int64)
        self._min_p = np.zeros(num_seats, dtype=np.float32)
        self._seed = np.zeros(num_seats, dtype=np.uint64)
        self._logprobs = np.full(num_seats, -1, dtype=np.int64)
        self._penalties = Penalties(token_ids)
        self._biases = SeatTokens()
        self._stops = SeatTokens()
        self._grammars = GrammarMasks(vocab_size)
        self._batch: _Batch | None = None

    def seat(self, seating: Seating) -> None:
        """Take over the parameters of a seat's new sequence."""
        seat, params = seating.seat, seating.sampling
        self._temperature[seat], self._seed[seat] = params.temperature, seating.seed
        self._top_p[seat], self._top_k[seat], self._min_p[seat] = params.top_p, params.top_k, params.min_p
        self._logprobs[seat] = -1 if params.logprobs is None else params.logprobs
        self._penalties.seat(seating)
        self._biases.replace(seat, list(params.logit_bias), list(params.logit_bias.values()))
        self._grammars.seat(seating)
        stops = sorted(seating.stop_token_ids) if params.min_tokens > 0 and seating.grammar is None else []
        self._stops.replace(seat, stops, [seating.num_prompt_tokens + params.min_tokens] * len(stops))
        self._drawn_there[seat] = self._draw is not None and _is_plain(params, stops, seating)
        self._batch = None

    def sample(self, logits_RV: Tensor, seats: Ints, positions: Ints) -> Sampled:
        """Choose a token for each row; `positions` is where in its sequence it goes. May overwrite `logits_RV`.

        A sequence's tokens before that position are those in the runner's table.
        """
        there = self._drawn_there[seats]
        if not there.any():
            return self._sample_on_host(logits_RV.cpu(), seats, positions)
        if there.all():
            return Sampled(self._sample_there(logits_RV, seats, positions), None)
        return self._sample_on_both(logits_RV, seats, positions, there)

    def _sample_there(self, logits_RV: Tensor, seats: Ints, positions: Ints) -> Tensor:
        assert self._draw is not None
        random = np.minimum(uniform(self._seed[seats], positions), 1 - 2.0**-24)  # below 1 as a float32, too
        columns = (self._temperature, self._top_k, self._top_p, self._min_p)
        settings_5R = np.stack([*(column[seats] for column in columns), random]).astype(np.float32)
        return self._draw(logits_RV, settings_5R).cpu()

    def _sample_on_both(self, logits_RV: Tensor, seats: Ints, positions: Ints, there: npt.NDArray[np.bool_]) -> Sampled:
        """Each row where it belongs, put together again."""
        ours, theirs = np.flatnonzero(~there), np.flatnonzero(there)
        tokens_R = torch.empty(len(seats), dtype=torch.int64)
        rows = torch.from_numpy(theirs).to(logits_RV.device)
        tokens_R[theirs] = self._sample_there(logits_RV[rows], seats[theirs], positions[theirs])
        rows = torch.from_numpy(ours).to(logits_RV.device)
        host = self._sample_on_host(logits_RV[rows].cpu(), seats[ours], positions[ours])
        tokens_R[ours] = host.tokens_R
        logprobs: list[TokenLogprobs | None] = [None] * len(seats)
        for row, report in zip(ours.tolist(), host.logprobs or [], strict=False):
            logprobs[row] = report
        failed = {int(ours[row]): reason for row, reason in host.failed.items()}
        return Sampled(tokens_R, None if host.logprobs is None else logprobs, failed)

    def _sample_on_host(self, logits_RV: Tensor, seats: Ints, positions: Ints) -> Sampled:
        batch = self._batch
        if batch is None or not np.array_equal(batch.seats, seats):
            batch = self._batch = self._compose(seats)
        raw_QV = logits_RV[batch.logprob_rows].log_softmax(-1) if len(batch.logprob_rows) else None
        self._adjust(logits_RV, batch, positions)
        failed = self._grammars.apply(logits_RV, seats, positions)
        tokens_R = torch.empty(len(seats), dtype=torch.int64) if batch.all_drawn else logits_RV.argmax(-1)
        for drawn in batch.drawn:
            whole = len(drawn.rows) == len(seats)
            tokens_R[drawn.rows] = drawn.draw(logits_RV if whole else logits_RV[drawn.rows], positions)
        self._grammars.advance(seats, tokens_R)
        return Sampled(tokens_R, None if raw_QV is None else _report(raw_QV, tokens_R, batch), failed)

    def _compose(self, seats: Ints) -> _Batch:
        row_of_seat = np.full(len(self._seed), -1)
        row_of_seat[seats] = np.arange(len(seats))
        bias_rows, bias_ids, bias_values = self._biases.of_rows(row_of_seat)
        stop_rows, stop_ids, stop_until = self._stops.of_rows(row_of_seat)
        logprob_rows = np.flatnonzero(self._logprobs[seats] >= 0)
        return _Batch(
            seats=seats.copy(),
            drawn=self._drawn(seats),
            all_drawn=bool((self._temperature[seats] > 0).all()),
            penalized=self._penalties.select(seats),
            bias_places=torch.from_numpy(bias_rows * self.vocab_size + bias_ids),
            bias_values=torch.from_numpy(bias_values),
            stop_rows=stop_rows,
            stop_places=stop_rows * self.vocab_size + stop_ids,
            stop_until=stop_until,
            logprob_rows=logprob_rows,
            logprob_counts=self._logprobs[seats[logprob_rows]].tolist(),
        )

    def _drawn(self, seats: Ints) -> list[DrawnRows]:
        """Rows that are drawn, those with and without a cut apart, in portions that bound the working memory."""
        random = self._temperature[seats] > 0
        cuts = random & ((self._top_k[seats] > 0) | (self._top_p[seats] < 1))
        portion = max(1, SAMPLED_AT_ONCE // self.vocab_size)
        return [
            self._portion(rows[start : start + portion], seats, cut=cut)
            for rows, cut in ((np.flatnonzero(cuts), True), (np.flatnonzero(random & ~cuts), False))
            for start in range(0, len(rows), portion)
        ]

    def _portion(self, rows: Ints, seats: Ints, *, cut: bool) -> DrawnRows:
        chosen = seats[rows]
        return DrawnRows(
            rows=torch.from_numpy(rows),
            positions_of=rows,
            seeds_R=self._seed[chosen],
            temperature_R1=torch.from_numpy(self._temperature[chosen])[:, None],
            min_p_R=torch.from_numpy(self._min_p[chosen]),
            top_k_R=torch.from_numpy(self._top_k[chosen]) if cut else None,
            top_p_R=torch.from_numpy(self._top_p[chosen]) if cut else None,
        )

    def _adjust(self, logits_RV: Tensor, batch: _Batch, positions: Ints) -> None:
        if batch.penalized:
            self._penalties.apply(logits_RV, batch.seats, positions, batch.penalized)
        if len(batch.bias_places):
            logits_RV.view(-1).index_add_(0, batch.bias_places, batch.bias_values)
        if len(batch.stop_places):
            early = positions[batch.stop_rows] < batch.stop_until
            if early.any():
                logits_RV.view(-1)[torch.from_numpy(batch.stop_places[early])] = float("-inf")


def _is_plain(params: SamplingParams, stops: list[int], seating: Seating) -> bool:
    """Whether a sequence asks for nothing but temperature and cuts."""
    penalties = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
    changed = params.logit_bias or stops or penalties != (1, 0, 0)
    return not changed and params.logprobs is None and seating.grammar is None


def _report(raw_QV: Tensor, tokens_R: Tensor, batch: _Batch) -> list[TokenLogprobs | None]:
    """For each row what it wants to be told; Q rows want anything."""
    reports: list[TokenLogprobs | None] = [None] * len(tokens_R)
    told = token_logprobs(raw_QV, tokens_R[batch.logprob_rows], batch.logprob_counts)
    for row, report in zip(batch.logprob_rows.tolist(), told, strict=True):
        reports[row] = report
    return reports
