"""Tokens to text while they come: whole characters only, and nothing that may still become a stop string.

A character can span tokens and a token can change how the one before it reads, so new text is the difference between
two decodings of a short window: the last tokens already shown, with and without the new ones. A window that ends in
U+FFFD ends inside a character and waits for the rest.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

CONTEXT_TOKENS: Final = 5
"""Tokens before the first new one that decide how it reads (a leading space, a combining mark), at least."""

MAX_HELD_TOKENS: Final = 16
"""Tokens that may wait for the rest of a character. UTF-8 needs 4; past this the bytes are simply invalid."""

_MAX_CHARACTER_TOKENS: Final = 4
_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"


class Decoder(Protocol):
    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...


class IncrementalDecoder:
    """The text of one growing sequence. `push` returns what became readable, `flush` the rest."""

    def __init__(self, decoder: Decoder, prompt_token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> None:
        self._decoder = decoder
        self._skip_special_tokens = skip_special_tokens
        self._ids = self._context_of(prompt_token_ids)
        self._pieces = deque([len(self._ids)])
        """Lengths of the shown pieces of `_ids`: it is cut between pieces only, never inside a character."""
        self._shown = len(self._ids)
        """How many of `_ids` are already text."""

    def push(self, token_ids: Sequence[int]) -> str:
        self._ids += token_ids
        before, after = self._decode(self._ids[: self._shown]), self._decode(self._ids)
        if after.endswith(_REPLACEMENT) and len(self._ids) - self._shown <= MAX_HELD_TOKENS:
            return ""
        return self._show(before, after)

    def flush(self) -> str:
        """Whatever still waits, replacement characters included; the sequence has ended."""
        if self._shown == len(self._ids):
            return ""
        return self._show(self._decode(self._ids[: self._shown]), self._decode(self._ids))

    def _show(self, before: str, after: str) -> str:
        self._pieces.append(len(self._ids) - self._shown)
        while len(self._ids) - self._pieces[0] >= CONTEXT_TOKENS:
            del self._ids[: self._pieces.popleft()]
        self._shown = len(self._ids)
        return after[len(before) :]

    def _context_of(self, prompt_token_ids: Sequence[int]) -> list[int]:
        """The prompt's last tokens, a few more where these begin inside a character."""
        ids = list(prompt_token_ids[-CONTEXT_TOKENS:])
        for extra in range(1, _MAX_CHARACTER_TOKENS):
            if not self._decode(ids).startswith(_REPLACEMENT):
                break
            ids = list(prompt_token_ids[-CONTEXT_TOKENS - extra :])
        return ids

    def _decode(self, ids: list[int]) -> str:
        return self._decoder.decode(ids, skip_special_tokens=self._skip_special_tokens)


@dataclass
class StopStrings:
    """Finds the first of `stop` in text that comes in pieces, and holds back what may be the start of one."""

    stop: tuple[str, ...]
    include: bool = False
    """Whether the stop string itself is part of the output."""

    matched: str | None = None
    _held: str = field(default="")

    def push(self, text: str) -> str:
        """Take new text; returns what can be shown. Once `matched` is set nothing more may be pushed."""
        text = self._held + text
        found = [(position, stop) for stop in self.stop if (position := text.find(stop)) >= 0]
        if found:
            position, self.matched = min(found)
            self._held = ""
            return text[: position + len(self.matched)] if self.include else text[:position]
        keep = self._partial_match(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back and turned out not to be a stop string."""
        held, self._held = self._held, ""
        return held

    def _partial_match(self, text: str) -> int:
        """Length of the longest end of `text` that begins one of the stop strings."""
        longest = max(map(len, self.stop)) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self.stop):
                return length
        return 0


class Detokenizer:
    """Text of one choice: incremental decoding, then stop strings.

    A stop string may span tokens; it is looked for after every token, so that `token_count` is exact when one is found.
    """

    def __init__(
        self,
        decoder: Decoder,
        prompt_token_ids: Sequence[int],
        *,
        stop: tuple[str, ...] = (),
        include_stop: bool = False,
        min_tokens: int = 0,
        skip_special_tokens: bool = True,
    ) -> None:
        self._decoder = IncrementalDecoder(decoder, prompt_token_ids, skip_special_tokens=skip_special_tokens)
        self._stops = StopStrings(stop, include_stop) if stop else None
        self._min_tokens = min_tokens
        self.token_count = 0

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text, if one did."""
        return self._stops.matched if self._stops else None

    def push(self, token_ids: Sequence[int]) -> str:
        """Text that `token_ids` made showable. Stops counting at the token that completed a stop string."""
        if self._stops is None:
            self.token_count += len(token_ids)
            return self._decoder.push(token_ids)
        shown = []
        for token_id in token_ids:
            self.token_count += 1
            shown.append(self._push_to_stops(self._stops, self._decoder.push([token_id])))
            if self._stops.matched is not None:
                break
        return "".join(shown)

    def flush(self) -> str:
        """The rest of the text; the sequence has ended without a stop string."""
        rest = self._decoder.flush()
        if self._stops is None:
            return rest
        shown = self._push_to_stops(self._stops, rest)
        return shown if self._stops.matched is not None else shown + self._stops.flush()

    def _push_to_stops(self, stops: StopStrings, text: str) -> str:
        return stops.push(text) if self.token_count > self._min_tokens or not text else stops.flush() + text
