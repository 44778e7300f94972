"""Which replica a request goes to. Pure: they see names and loads, and remember only what `Holders` bounds.

Prefix affinity, in the order in which it looks:

1. *prefix*: an endpoint that was sent the longest known part of the prompt, if at most three hold it. It may be
   busier than its share, up to `WORTH` x the tokens that it saves.
2. *hash*: where the ring has the shortest prefix that is not everybody's: the same endpoint for every router. Or
   *spill*: the next on the ring that is within its share, `OVERLOAD` x the mean load (Mirrokni, Thorup and
   Zadimoghaddam, "Consistent Hashing with Bounded Loads", 2018). Worked example: 3 endpoints with 4,000 tokens in
   flight and a request of 500 make a share of 1.5 x 4,500 / 3 = 2,250 tokens.
3. *least-load*, when all of the prompt is everybody's, or it is too short to have a prefix.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from kvasir_router.holders import EVERYBODY, Holders
from kvasir_router.prompts import BOUNDARIES, BYTES_PER_TOKEN, Ask
from kvasir_router.ring import Ring

OVERLOAD: Final = 1.5
"""How much more than the mean load an endpoint may have: on traces 2 has longer TTFTs, and 1.25 fewer hits."""

WORTH: Final = 2.0
"""How many tokens in flight a holder may have for each that it saves: most of those only decode, or are cached."""

MAX_PREFIXES: Final = 131_072
"""Prefixes that are remembered: about 30 MiB, the last 3,000 prompts of 20 KB."""


class Choice(NamedTuple):
    """A replica's name, and why it was chosen, in a word."""

    name: str
    reason: str


class Policy(Protocol):
    """Chooses among endpoints that may be used; `loads` (tokens in flight by name) is never empty."""

    def choose(self, ask: Ask, loads: Mapping[str, float]) -> Choice:
        """Where a request goes."""
        ...

    def sent(self, ask: Ask, name: str) -> None:
        """It went there."""
        ...


class RoundRobin:
    """In turn, by name; whoever comes or goes does not upset the order of the others."""

    def __init__(self) -> None:
        self._last = ""

    def choose(self, ask: Ask, loads: Mapping[str, float]) -> Choice:
        del ask
        name = min((name for name in loads if name > self._last), default=min(loads))
        return Choice(name, "round-robin")

    def sent(self, ask: Ask, name: str) -> None:
        del ask
        self._last = name


class LeastLoad:
    """To the one with the fewest tokens in flight; among equals in turn."""

    def __init__(self) -> None:
        self._turn = RoundRobin()

    def choose(self, ask: Ask, loads: Mapping[str, float]) -> Choice:
        least = min(loads.values())
        equals = {name: load for name, load in loads.items() if load == least}
        return Choice(self._turn.choose(ask, equals).name, "least-load")

    def sent(self, ask: Ask, name: str) -> None:
        self._turn.sent(ask, name)


class PrefixAffinity:
    """To where the prompt's prefix is, within bounded load."""

    def __init__(self, limit: int = MAX_PREFIXES, overload: float = OVERLOAD) -> None:
        self.holders = Holders(limit)
        self._overload = overload
        self._least = LeastLoad()
        self._names: frozenset[str] = frozenset()
        self._ring = Ring(())

    def choose(self, ask: Ask, loads: Mapping[str, float]) -> Choice:
        share = self._overload * (sum(loads.values()) + ask.cost) / len(loads)
        if ask.session and (at_home := self._session_home(ask, loads, share)):
            return at_home
        holder = self._holder(ask, loads, share)
        if holder is not None:
            return Choice(holder, "prefix")
        key = next((block for block in ask.blocks if self.holders.of(block) != EVERYBODY), None)
        if key is None:
            return self._least.choose(ask, loads)
        return self._on_ring(key, loads, share)

    def sent(self, ask: Ask, name: str) -> None:
        self.holders.note(ask.blocks, name)
        self._least.sent(ask, name)

    def _session_home(self, ask: Ask, loads: Mapping[str, float], share: float) -> Choice | None:
        """A session stays with its latest endpoint, at any load up to twice its share."""
        holders = self.holders.of(ask.blocks[0]) or ()
        name = next((name for name in holders if name in loads), None)
        return Choice(name, "session") if name is not None and loads[name] <= 2 * share else None

    def _holder(self, ask: Ask, loads: Mapping[str, float], share: float) -> str | None:
        """The least loaded holder of the longest known prefix; a shorter one's where those are too busy."""
        for depth in range(len(ask.blocks), 0, -1):
            holders = self.holders.of(ask.blocks[depth - 1])
            if holders == EVERYBODY:
                return None  # what is shorter is everybody's as well
            limit = max(share, WORTH * saved(ask, depth))
            fit = [name for name in holders or () if name in loads and loads[name] <= limit]
            if fit:
                return min(fit, key=lambda name: loads[name])
        return None

    def _on_ring(self, key: int, loads: Mapping[str, float], share: float) -> Choice:
        names = loads.keys()
        if names != self._names:
            self._names, self._ring = frozenset(names), Ring(names)
        for position, name in enumerate(self._ring.walk(key)):
            if loads[name] <= share:
                return Choice(name, "spill" if position else "hash")
        raise AssertionError("at least one endpoint is within its share, since the least loaded one is below the mean")


def saved(ask: Ask, depth: int) -> float:
    """Tokens of the first `depth` prefixes of a prompt."""
    depth -= ask.session
    return BOUNDARIES[depth - 1] / BYTES_PER_TOKEN if depth > 0 else 0.0


POLICIES: Final[Mapping[str, type[RoundRobin | LeastLoad | PrefixAffinity]]] = {
    "PrefixAffinity": PrefixAffinity,
    "LeastLoad": LeastLoad,
    "RoundRobin": RoundRobin,
}


def spread(names: Sequence[str], weights: Mapping[str, float], draw: float) -> str | None:
    """Divide [0, 1) by weights, those of names without one sharing what is left of 100; the name at `draw`.

    None where nothing has weight.
    """
    named = sum(weights.get(name, 0.0) for name in names)
    rest = [name for name in names if name not in weights]
    each = max(0.0, 100.0 - named) / len(rest) if rest else 0.0
    shares = {name: weights.get(name, each) for name in names}
    point = draw * sum(shares.values())
    for name, share in shares.items():
        point -= share
        if share > 0 and point < 0:
            return name
    return None
