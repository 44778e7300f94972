"""Which replica is to have which adapters, when not all of them fit into each. Pure.

- All adapters fit into every replica, or requests do not pass a router that would find the right one: all everywhere.
- They fit into all replicas together: each has one place at least; places that are left go to those with the most
  demand for each place. Pinned ones have as many places as there are replicas, as long as every other has one.
- Not even that: each is on one replica, whose engine reads from disk what its memory does not hold.

An adapter stays where it is rather than go elsewhere, and demand counts in steps of two, so that little changes move
nothing. A replica keeps what it serves until another one that is to have it serves it.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class AdapterDemand:
    """An adapter, and how many requests came for it lately, over all replicas."""

    name: str
    demand: float = 0.0
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Room:
    """A replica: how many adapters its memory holds, and which it serves."""

    replica: str
    places: int
    serves: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Filling:
    room: Room
    names: set[str] = field(default_factory=set)
    load: float = 0.0

    @property
    def has_place(self) -> bool:
        return len(self.names) < self.room.places


def place_adapters(
    adapters: Sequence[AdapterDemand], rooms: Sequence[Room], *, routed: bool
) -> Mapping[str, frozenset[str]]:
    """The names that each replica is to have, by replica. `routed`: requests find the replica that has theirs."""
    everything = frozenset(adapter.name for adapter in adapters)
    if not routed or all(len(adapters) <= room.places for room in rooms):
        return {room.replica: everything for room in rooms}
    fillings = [_Filling(room) for room in sorted(rooms, key=lambda room: room.replica)]
    spare = sum(room.places for room in rooms) - len(adapters)
    for adapter in sorted(adapters, key=lambda one: (-one.pinned, -_step(one), one.name)):
        _put(adapter, fillings)
        for _ in range(min(spare, _copies(adapter, adapters, rooms) - 1)):
            spare -= _put(adapter, fillings, only_with_place=True)
    return _until_served({each.room.replica: frozenset(each.names) for each in fillings}, rooms)


def _step(adapter: AdapterDemand) -> int:
    """Demand in steps of two: 0, 1 from 1 request on, 2 from 2, 3 from 4."""
    return max(0, math.floor(math.log2(adapter.demand)) + 1) if adapter.demand >= 1 else 0


def _copies(adapter: AdapterDemand, adapters: Sequence[AdapterDemand], rooms: Sequence[Room]) -> int:
    """Places by share of the demand, at least one, at most one in each replica."""
    if adapter.pinned:
        return len(rooms)
    weights = {each.name: 2.0 ** _step(each) for each in adapters}
    places = sum(room.places for room in rooms)
    return max(1, min(len(rooms), math.floor(places * weights[adapter.name] / sum(weights.values()))))


def _put(adapter: AdapterDemand, fillings: list[_Filling], *, only_with_place: bool = False) -> bool:
    """Give the adapter one more replica; returns whether there was one."""
    free = [each for each in fillings if adapter.name not in each.names and (each.has_place or not only_with_place)]
    if not free:
        return False
    chosen = min(free, key=lambda each: _reluctance(adapter, each))
    chosen.names.add(adapter.name)
    chosen.load += 2.0 ** _step(adapter)
    return True


def _reluctance(adapter: AdapterDemand, filling: _Filling) -> tuple[object, ...]:
    """Least where there is a place, where it is already, where there is most room left, then by a hash."""
    room = filling.room
    full = len(filling.names) / max(1, room.places)
    drawn = hashlib.sha256(f"{adapter.name}\n{room.replica}".encode()).digest()
    return not filling.has_place, adapter.name not in room.serves, full, filling.load, drawn


def _until_served(placed: Mapping[str, frozenset[str]], rooms: Sequence[Room]) -> Mapping[str, frozenset[str]]:
    """Let replicas keep what none of those that are to have it serves yet."""
    everything = frozenset[str]().union(*placed.values())
    settled = {
        name for name in everything if any(name in placed[room.replica] and name in room.serves for room in rooms)
    }
    return {room.replica: placed[room.replica] | ((room.serves & everything) - settled) for room in rooms}
