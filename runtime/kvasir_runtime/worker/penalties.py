"""Penalties for tokens that a sequence has said before, from the runner's own table of tokens.

Nothing is kept per sequence and vocabulary entry: a step looks up the logits of the tokens that were said, changes
them, and writes them back, so that it costs as many operations as there are tokens and a preempted sequence has
nothing to restore. A token that was said twice is looked up twice; both write the same value.

Shape suffixes: R rows, V vocabulary, P penalized rows, L tokens of the longest of these.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kvasir_runtime.contract.memory import TOKENS_LOOKED_UP_AT_ONCE
from kvasir_runtime.core.scheduler_output import Seating

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PenalizedRows:
    """Rows of a batch by the penalty that they have."""

    repetition: Ints
    presence: Ints
    frequency: Ints

    def __bool__(self) -> bool:
        return bool(len(self.repetition) or len(self.presence) or len(self.frequency))


class Penalties:
    """Strengths by seat. `token_ids` is `[seats, max_model_len + 1]`, shared with the runner, which fills it."""

    def __init__(self, token_ids: npt.NDArray[np.int32]) -> None:
        num_seats = len(token_ids)
        self._token_ids = token_ids
        self._prompt_lengths = np.zeros(num_seats, dtype=np.int64)
        self._repetition = np.ones(num_seats, dtype=np.float32)
        self._presence = np.zeros(num_seats, dtype=np.float32)
        self._frequency = np.zeros(num_seats, dtype=np.float32)

    def seat(self, seating: Seating) -> None:
        seat, params = seating.seat, seating.sampling
        self._prompt_lengths[seat] = seating.num_prompt_tokens
        self._repetition[seat] = params.repetition_penalty
        self._presence[seat], self._frequency[seat] = params.presence_penalty, params.frequency_penalty

    def select(self, seats: Ints) -> PenalizedRows:
        """Which rows of a batch on `seats` are penalized."""
        return PenalizedRows(
            np.flatnonzero(self._repetition[seats] != 1),
            np.flatnonzero(self._presence[seats]),
            np.flatnonzero(self._frequency[seats]),
        )

    def apply(self, logits_RV: Tensor, seats: Ints, lengths: Ints, penalized: PenalizedRows) -> None:
        """Change `logits_RV`, which is contiguous, for sequences of `lengths` tokens so far.

        Repetition over prompt and output (arXiv 1909.05858), presence and frequency over the output (OpenAI).
        """
        for rows in _portions(penalized.repetition, lengths):
            self._repeat(logits_RV, rows, seats[rows], lengths[rows])
        for rows in _portions(penalized.presence, lengths):
            self._presence_of(logits_RV, rows, seats[rows], lengths[rows])
        for rows in _portions(penalized.frequency, lengths):
            self._frequency_of(logits_RV, rows, seats[rows], lengths[rows])

    def _repeat(self, logits_RV: Tensor, rows: Ints, seats: Ints, lengths: Ints) -> None:
        places, _ = self._places(logits_RV, rows, seats, np.zeros_like(lengths), lengths)
        strength_P1 = torch.from_numpy(self._repetition[seats])[:, None]
        flat = logits_RV.view(-1)
        said_PL = flat[places]
        flat[places] = torch.where(said_PL > 0, said_PL / strength_P1, said_PL * strength_P1)

    def _presence_of(self, logits_RV: Tensor, rows: Ints, seats: Ints, lengths: Ints) -> None:
        starts = self._prompt_lengths[seats]
        places, _ = self._places(logits_RV, rows, seats, starts, lengths)
        strength_P1 = torch.from_numpy(np.where(lengths > starts, self._presence[seats], np.float32(0)))[:, None]
        flat = logits_RV.view(-1)
        flat[places] = flat[places] - strength_P1

    def _frequency_of(self, logits_RV: Tensor, rows: Ints, seats: Ints, lengths: Ints) -> None:
        places, within = self._places(logits_RV, rows, seats, self._prompt_lengths[seats], lengths)
        strength_PL = torch.from_numpy(np.where(within, -self._frequency[seats][:, None], np.float32(0)))
        logits_RV.view(-1).index_add_(0, places.view(-1), strength_PL.view(-1))

    def _places(
        self, logits_RV: Tensor, rows: Ints, seats: Ints, starts: Ints, lengths: Ints
    ) -> tuple[Tensor, npt.NDArray[np.bool_]]:
        """`[P, L]`: where in the flat logits the tokens from `starts` on are, and which of them are within the length.

        Beyond a sequence's end its last token is repeated.
        """
        columns_PL = starts[:, None] + np.arange(max(1, int((lengths - starts).max())))
        within_PL = columns_PL < lengths[:, None]
        tokens_PL = self._token_ids[seats[:, None], np.minimum(columns_PL, lengths[:, None] - 1)]
        return torch.from_numpy(tokens_PL + rows[:, None] * logits_RV.shape[-1]), within_PL


def _portions(rows: Ints, lengths: Ints) -> Iterator[Ints]:
    if len(rows):
        count = max(1, TOKENS_LOOKED_UP_AT_ONCE // int(lengths[rows].max()))
        for start in range(0, len(rows), count):
            yield rows[start : start + count]
