"""Who waits for devices, in which order, and who has them.

Services of a higher `spec.priority` come first, then the order is that of the scheduler's queue: pods of a higher
priority class, then those that have waited longer. Among equals it is no promise: the scheduler holds no devices back
for those who need more of them, and lets pods that it tried in vain wait longer from time to time, so that a later one
may be served first.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from kvasir_operator.placement.inventory import DeviceDemand, DeviceNode, Inventory

SHOWN_NAMES: Final = 3
"""Services that a message names; of the others it tells the number."""


@dataclass(frozen=True, slots=True)
class Waiter:
    """A service with a pod that no node has room for: the one of its pods that comes first.

    `priority` is the service's, `pod_priority` that of the pod's class. `lacks_devices` is False for one that the
    scheduler turns away for other reasons: devices would not help it.
    """

    service: str
    demand: DeviceDemand
    priority: int
    since: datetime
    pod_priority: int = 0
    lacks_devices: bool = True

    @property
    def rank(self) -> tuple[int, int, datetime, str]:
        """Sorts in the order in which they are served."""
        return (-self.priority, -self.pod_priority, self.since, self.service)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a service stands. `total` and `left` count devices of the `nodes` that it may use."""

    demand: DeviceDemand
    nodes: int
    total: int
    most_left: int
    holders: tuple[tuple[str, int], ...]
    ahead: tuple[str, ...]

    @property
    def message(self) -> str:
        """What is missing, who has it, and the place in the queue."""
        return "; ".join([self._missing(), *self._held(), self._place()])

    def _missing(self) -> str:
        wanted = f"a replica needs {self.demand.count} {self.demand.resource} of one node"
        if not self.nodes:
            return f"{wanted}, and no node that it may use has so many"
        nodes = "the node that it may use has" if self.nodes == 1 else f"the {self.nodes} nodes that it may use have"
        return f"{wanted}; {nodes} {self.total}, at most {self.most_left} left on one"

    def _held(self) -> list[str]:
        shown = [f"{service} has {count}" for service, count in self.holders]
        return [_listed(shown)] if shown else []

    def _place(self) -> str:
        """Who is behind is not told: each newcomer would change the message of all."""
        place = f"place {len(self.ahead) + 1} in the queue"
        return f"{place}, after {_listed(list(self.ahead))}" if self.ahead else place


def first_of_each(waiters: Iterable[Waiter]) -> list[Waiter]:
    """One waiter for each service, in the order of the queue."""
    first: dict[str, Waiter] = {}
    for waiter in sorted(waiters, key=lambda each: each.rank):
        first.setdefault(waiter.service, waiter)
    return list(first.values())


def standing_of(service: str, queue: Iterable[Waiter], inventory: Inventory) -> Standing | None:
    """Where the service stands among those that want the same devices; None when it does not wait.

    `queue` is in order. Services compete when they want the same resource and some node will do for both.
    """
    waiting = list(queue)
    own = next((waiter for waiter in waiting if waiter.service == service), None)
    if own is None:
        return None
    resource, nodes = own.demand.resource, inventory.suitable(own.demand)
    rivals = [each for each in waiting if each is own or _competes(each.demand, resource, nodes)]
    return Standing(
        demand=own.demand,
        nodes=len(nodes),
        total=sum(node.devices[resource] for node in nodes),
        most_left=max((inventory.left(node, resource) for node in nodes), default=0),
        holders=tuple(inventory.holders(nodes, resource)),
        ahead=tuple(each.service for each in rivals[: rivals.index(own)]),
    )


def _competes(demand: DeviceDemand, resource: str, nodes: Iterable[DeviceNode]) -> bool:
    return demand.resource == resource and any(demand.accepts(node) for node in nodes)


def _listed(parts: list[str]) -> str:
    more = len(parts) - SHOWN_NAMES
    return ", ".join(parts[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")
