"""Who was sent which prefix: bounded memory of what this router did. Pure.

A hint and nothing more: without it, and in another router, the ring says where a prefix belongs.
"""

from collections import OrderedDict
from typing import Final

MAX_HOLDERS: Final = 3
"""A prefix that more endpoints hold is everybody's: it says nothing about where a request should go."""

EVERYBODY: Final[tuple[str, ...]] = ()


class Holders:
    """The latest holders of each prefix, for at most `limit` prefixes; the least recently asked for go first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._holders: OrderedDict[int, tuple[str, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._holders)

    def of(self, block: int) -> tuple[str, ...] | None:
        """Endpoints that were sent this prefix; EVERYBODY when too many were, None when none was."""
        return self._holders.get(block)

    def note(self, blocks: tuple[int, ...], name: str) -> None:
        """An endpoint is sent a prompt. The longest prefixes are noted last, so that they are kept longest."""
        for block in blocks:
            before = self._holders.get(block)
            if before is None:
                self._holders[block] = (name,)
                continue
            self._holders.move_to_end(block)
            if before and name not in before:
                self._holders[block] = (name, *before) if len(before) < MAX_HOLDERS else EVERYBODY
        while len(self._holders) > self._limit:
            self._holders.popitem(last=False)

    def forget(self, block: int) -> None:
        """Its holders are gone."""
        self._holders.pop(block, None)
