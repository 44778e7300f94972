"""Consistent hashing: where a key belongs, so that routers which never talk to each other agree. Pure.

Each endpoint has points on a ring of 64 bits; a key belongs to the endpoint of the next point, and when that one is
full to the next endpoint after it. An endpoint that comes or goes moves only the keys next to its points (Karger et
al., "Consistent Hashing and Random Trees", 1997).
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Final

POINTS: Final = 64
"""For each endpoint: the largest share of the keys is then within about 1.3 of the mean."""


class Ring:
    """Made anew when the endpoints change."""

    def __init__(self, names: Iterable[str]) -> None:
        points = sorted((_point(name, index), name) for name in set(names) for index in range(POINTS))
        self._hashes = [point for point, _ in points]
        self._names = [name for _, name in points]

    def walk(self, key: int) -> Iterator[str]:
        """Every endpoint once, in the order in which the key prefers them."""
        seen: set[str] = set()
        start = bisect_right(self._hashes, key)
        for index in range(len(self._names)):
            name = self._names[(start + index) % len(self._names)]
            if name not in seen:
                seen.add(name)
                yield name


def _point(name: str, index: int) -> int:
    return int.from_bytes(blake2b(f"{name}#{index}".encode(), digest_size=8).digest(), "little")
