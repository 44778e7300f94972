"""Grammars in the sampler: which tokens each row may take, for all rows at once.

Shape suffixes: R rows that follow a grammar, B bytes of a mask, V vocabulary.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kvasir_runtime.core.scheduler_output import Seating
from kvasir_runtime.structured.grammar import Matcher, mask_bytes

Ints = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Follower:
    """A seat's sequence; it must not end by `ends_B` before position `min_length`, nor by `never_B` at all."""

    matcher: Matcher
    min_length: int
    eos_token_ids: tuple[int, ...]
    eos_B: Bits
    ends_B: Bits
    never_B: Bits | None


class GrammarMasks:
    """The matchers of all seats that have one. Rebuilt from the tokens when a sequence is seated again."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._width = mask_bytes(vocab_size)
        self._followers: dict[int, _Follower] = {}

    def seat(self, seating: Seating) -> None:
        """Take over a seat's new sequence: after a preemption it goes on where its output ends."""
        self._followers.pop(seating.seat, None)
        if seating.grammar is None:
            return
        matcher = seating.grammar.matcher()
        matcher.accept(seating.token_ids[seating.num_prompt_tokens :])
        eos_B = self._bits(seating.grammar.eos_token_ids)
        self._followers[seating.seat] = _Follower(
            matcher,
            seating.num_prompt_tokens + seating.sampling.min_tokens,
            seating.grammar.eos_token_ids,
            eos_B,
            eos_B | self._bits(tuple(seating.stop_token_ids)),
            eos_B if seating.sampling.ignore_eos else None,
        )

    def apply(self, logits_RV: Tensor, seats: Ints, positions: Ints) -> dict[int, str]:
        """Set what the rows' grammars forbid to -inf; returns the rows whose grammar failed, with the reason."""
        if not self._followers:
            return {}
        rows = [row for row, seat in enumerate(seats.tolist()) if seat in self._followers]
        if not rows:
            return {}
        followers = [self._followers[seat] for seat in seats[rows].tolist()]
        bits_RB = np.zeros((len(rows), self._width), dtype=np.uint8)
        matchers = [follower.matcher for follower in followers]
        matchers[0].grammar.backend.fill_masks(matchers, bits_RB.ctypes.data)
        failed = {}
        for place, (row, follower) in enumerate(zip(rows, followers, strict=True)):
            bits_RB[place] = hold_ends(follower, bits_RB[place], int(positions[row]))
            if error := follower.matcher.error:
                failed[row] = error
        forbid(logits_RV, rows, torch.from_numpy(bits_RB))
        return failed

    def advance(self, seats: Ints, tokens_R: Tensor) -> None:
        """Go on by the tokens that were chosen."""
        if not self._followers:
            return
        for seat, token in zip(seats.tolist(), tokens_R.tolist(), strict=True):
            if seat in self._followers:
                self._followers[seat].matcher.accept((token,))

    def _bits(self, token_ids: tuple[int, ...]) -> Bits:
        flags_V = np.zeros(self._width * 8, dtype=bool)
        flags_V[list(token_ids)] = True
        return np.packbits(flags_V, bitorder="little")


def hold_ends(follower: _Follower, allowed_B: Bits, position: int) -> Bits:
    """`allowed_B` without what may not end the sequence yet, unless the grammar has nothing else to go on with.

    A model may name an ordinary token as one that ends: in the middle of a text it is none.
    """
    may_end = any(allowed_B[token_id >> 3] >> (token_id & 7) & 1 for token_id in follower.eos_token_ids)
    if may_end and not follower.matcher.complete:
        allowed_B = allowed_B & ~follower.eos_B
    early = position < follower.min_length
    if not early and follower.never_B is None:
        return allowed_B
    held_B = allowed_B if follower.never_B is None else allowed_B & ~follower.never_B
    if early:
        held_B = held_B & ~follower.ends_B
    return held_B if held_B.any() else allowed_B


def forbid(logits_RV: Tensor, rows: list[int], bits_RB: Tensor) -> None:
    """Set to -inf, in place, each of `rows`' logits whose bit is not set."""
    bits_RB = bits_RB.to(logits_RV.device, non_blocking=True)
    shifts_8 = torch.arange(8, dtype=torch.uint8, device=logits_RV.device)
    allowed_RV = ((bits_RB[:, :, None] >> shifts_8) & 1).flatten(1)[:, : logits_RV.shape[1]].bool()
    if len(rows) == len(logits_RV):
        logits_RV.masked_fill_(~allowed_RV, float("-inf"))
    else:
        logits_RV[rows] = logits_RV[rows].masked_fill(~allowed_RV, float("-inf"))
