"""Who gives devices to whom: replicas of a lower priority are drained for one of a higher priority that waits.

- A replica waits when the scheduler found no node for it and says that devices are among what is missing. Those of a
  higher `spec.priority` come first, then the older.
- Only services of a strictly lower priority give, and only replicas above their floor: `scaling.minReplicas`, without
  `scaling` the `replicas` themselves, so that a service which asks for a fixed number keeps it.
- All or nothing: a replica takes its devices of one node. Where the devices of a node that are left, those of replicas
  that leave it anyway, and those that may be taken are fewer than it needs, nobody is drained for it.
- Of several nodes the one is taken whose replicas have the lowest priority, then the one with the fewest to drain. Of
  several replicas on it those of the lowest priority go first, then those that do not serve, then the youngest.
- A group of services that start together is served whole or not at all: nobody is drained for one of them alone.
- What was freed, or is being freed, is kept for the one that waits: services of a lower priority that could take it
  make no pods meanwhile. A drain is called back when nobody waits for it any more.

Worked example: a node with 4 devices, `batch` (priority 0, minReplicas 1) has 4 replicas of one device there, `chat`
(priority 10) waits for 2: two replicas of `batch` are drained, and it makes no others until `chat` has its node.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from kvasir_operator.placement.inventory import DeviceDemand, DeviceNode, Inventory
from kvasir_operator.placement.queue import Waiter


@dataclass(frozen=True, slots=True)
class Holder:
    """A replica on a node, with `count` devices. `leaving`: it drains, or is being deleted."""

    uid: str
    service: str
    node: str
    resource: str
    count: int
    since: datetime
    serving: bool = False
    leaving: bool = False


class Rank(NamedTuple):
    """What a service may claim: its priority, and the replicas that nobody takes from it."""

    priority: int
    floor: int


@dataclass(frozen=True, slots=True)
class Reservation:
    """Devices of a node that are kept for a replica which waits; `left` remain for others."""

    waiter: Waiter
    node: DeviceNode
    left: int

    def excludes(self, priority: int, demand: DeviceDemand) -> bool:
        """Whether a replica of that priority could take what is kept."""
        return (
            priority < self.waiter.priority
            and demand.resource == self.waiter.demand.resource
            and self.left < demand.count
            and demand.accepts(self.node)
        )


@dataclass(frozen=True, slots=True)
class Settlement:
    """What follows for all. `yields`: replicas, by uid, that give their devices, and the service that gets them."""

    reservations: tuple[Reservation, ...] = ()
    yields: Mapping[str, str] = field(default_factory=dict)

    def excluding(self, priority: int, demand: DeviceDemand) -> Reservation | None:
        """For whom a service must wait before it may make pods; None where it may."""
        return next((each for each in self.reservations if each.excludes(priority, demand)), None)


Party = tuple[Waiter, ...]
"""Replicas that are of use only together."""


def settle(
    queue: Iterable[Waiter | Party], inventory: Inventory, holders: Iterable[Holder], ranks: Mapping[str, Rank]
) -> Settlement:
    """Decide for all that wait. `queue` is in order; services without a rank give nothing."""
    table = _Table(inventory, list(holders), ranks)
    for waiting in queue:
        party = waiting if isinstance(waiting, tuple) else (waiting,)
        if all(waiter.lacks_devices for waiter in party):
            table.serve_all(party)
    return Settlement(tuple(table.reservations), table.yields)


@dataclass(frozen=True, slots=True)
class _Option:
    """One node on which a replica that waits could be placed, and what that takes."""

    node: DeviceNode
    going: tuple[Holder, ...]
    victims: tuple[Holder, ...]
    left: int
    cost: tuple[int, int]

    @property
    def order(self) -> tuple[int, int, str]:
        return (*self.cost, self.node.name)


class _Table:
    """What is left while one after the other is served."""

    def __init__(self, inventory: Inventory, holders: list[Holder], ranks: Mapping[str, Rank]) -> None:
        self._inventory = inventory
        self._ranks = ranks
        self._on: dict[tuple[str, str], list[Holder]] = defaultdict(list)
        staying: Counter[str] = Counter()
        for holder in holders:
            self._on[holder.node, holder.resource].append(holder)
            staying[holder.service] += not holder.leaving
        self._spare = {service: staying[service] - rank.floor for service, rank in ranks.items()}
        self._left: dict[tuple[str, str], int] = {}
        self.reservations: list[Reservation] = []
        self.yields: dict[str, str] = {}

    def serve_all(self, party: Party) -> None:
        """Find nodes for all of them, those that need most first; for none where one finds none."""
        before = dict(self._spare), dict(self._left), list(self.reservations), dict(self.yields)
        for waiter in sorted(party, key=lambda each: -each.demand.count):
            if not self.serve(waiter):
                self._spare, self._left, self.reservations, self.yields = before
                return

    def serve(self, waiter: Waiter) -> bool:
        """Find a node for the one that waits: with devices left, else with some that others give."""
        options = [option for node in self._inventory.suitable(waiter.demand) if (option := self._option(waiter, node))]
        if not options:
            return False
        best = min(options, key=lambda option: option.order)
        for holder in best.victims:
            self._spare[holder.service] -= 1
        self.yields |= {holder.uid: waiter.service for holder in (*best.going, *best.victims)}
        self._left[best.node.name, waiter.demand.resource] = best.left
        self.reservations.append(Reservation(waiter, best.node, best.left))
        return True

    def _option(self, waiter: Waiter, node: DeviceNode) -> _Option | None:
        """What it takes to place the one that waits on this node; None where it cannot be placed there whole."""
        resource, missing = waiter.demand.resource, waiter.demand.count
        left = self._left.get((node.name, resource), self._inventory.left(node, resource))
        there = [holder for holder in self._on[node.name, resource] if holder.uid not in self.yields]
        going = _enough((holder for holder in there if holder.leaving), missing - left)
        left += sum(holder.count for holder in going)
        victims = _enough(self._takeable(there, waiter.priority), missing - left)
        left += sum(holder.count for holder in victims)
        if left < missing:
            return None
        highest = max((self._ranks[victim.service].priority for victim in victims), default=-(1 << 62))
        return _Option(node, tuple(going), tuple(victims), left - missing, (highest, len(victims)))

    def _takeable(self, holders: list[Holder], priority: int) -> list[Holder]:
        """Replicas that a service of this priority may take, in the order in which they go."""
        spare = dict(self._spare)
        able = [each for each in holders if not each.leaving and each.service in self._ranks]
        able = [each for each in able if self._ranks[each.service].priority < priority]
        able.sort(
            key=lambda each: (self._ranks[each.service].priority, each.serving, -each.since.timestamp(), each.uid)
        )
        taken = []
        for holder in able:
            if spare[holder.service] > 0:
                spare[holder.service] -= 1
                taken.append(holder)
        return taken


def _enough(holders: Iterable[Holder], missing: int) -> list[Holder]:
    """The first of them that have as many devices as are missing; all of them where that is not enough."""
    chosen: list[Holder] = []
    for holder in holders:
        if missing <= 0:
            break
        missing -= holder.count
        chosen.append(holder)
    return chosen
