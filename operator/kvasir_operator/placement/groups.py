"""Services that start together or not at all: who of a group may make replicas now.

Services of a namespace with the same `spec.group.name` are a group. Until each has a replica with a node, devices are
for all of them or for none: two groups that each got half of what they need would wait for each other for ever.

| the group                                           | a service of it                           | its role |
|-----------------------------------------------------|-------------------------------------------|----------|
| any                                                 | serves, or wants no replicas              | FREE     |
| each service has a replica with a node              | any                                       | FREE     |
| all but one serve                                   | any                                       | FREE     |
| fewer services than `spec.group.services`           | any other                                 | WAITS    |
| the scheduler turned one away a short while ago     | any other                                 | WAITS    |
| a replica of each that has none would fit at once   | any other                                 | FIRST    |
| they would not                                      | no node has room for it, even alone       | LACKS    |
| they would not                                      | any other                                 | WAITS    |

FREE makes replicas as ever. FIRST makes one, and takes no traffic until the group is FREE. LACKS makes one as well: it
holds nothing while it waits for its node, and shows an autoscaler of nodes what is missing. WAITS makes none, and gives
back those that do not serve yet.

What other pods have of the nodes is not seen. A replica that the scheduler turns away though a node seemed to have room
ends the attempt: all give back what they have, and try again later (`grouping.Attempts`).

Worked example: `chat` needs 2 devices and `embed` 1, of a node with 4 of which 2 are left. Each alone would fit, so
neither is started, and neither shows anything. With 0 left both lack; with 3 left both are first.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from kvasir_operator.placement.inventory import DeviceDemand, Inventory
from kvasir_operator.placement.queue import Waiter

Left = dict[tuple[str, str], int]
"""Devices by node and resource, where they differ from the inventory's."""


class Role(StrEnum):
    """What a service of a group may do now; by the table above."""

    FREE = "Free"
    FIRST = "First"
    LACKS = "Lacks"
    WAITS = "Waits"


@dataclass(frozen=True, slots=True)
class Turn:
    """The role of a service, and for people what its group waits for; empty where it does not wait."""

    role: Role = Role.FREE
    message: str = ""


ALONE: Final = Turn()
"""A service that is in no group."""


@dataclass(frozen=True, slots=True)
class Member:
    """A service of a group, with what one of its replicas needs; `demand` is None without devices.

    `placed`: a replica has a node; `serves`: one serves. `turned_away`: the scheduler found no node for one, or
    something else keeps it from being made. `helpless`: devices would not help it.
    """

    service: str
    group: str
    size: int
    demand: DeviceDemand | None
    priority: int
    since: datetime
    wanted: bool = True
    placed: bool = False
    serves: bool = False
    turned_away: bool = False
    helpless: bool = False
    generation: int = 0

    @property
    def rank(self) -> tuple[int, datetime, str]:
        """Sorts in the order in which they are served."""
        return (-self.priority, self.since, self.service)


@dataclass(frozen=True, slots=True)
class Grouping:
    """What is decided for all groups. `parties` are the replicas that devices would help, group by group."""

    turns: Mapping[str, Turn]
    parties: tuple[tuple[Waiter, ...], ...] = ()


def decide(members: Iterable[Member], inventory: Inventory, given_up: Mapping[str, str] | None = None) -> Grouping:
    """Roles by service. Of several groups the first may take what is left before the next one is looked at.

    `given_up` are groups whose last attempt failed a short while ago, with the services that were turned away.
    """
    left: Left = {}
    turns: dict[str, Turn] = {}
    groups = by_group(members)
    for name, group in groups.items():
        turned_away = (given_up or {}).get(name, "")
        turns |= {
            each.service: ALONE if each.serves or not each.wanted else turn
            for each, turn in _turns(group, inventory, left, turned_away)
        }
    return Grouping(turns, tuple(party for group in groups.values() if (party := _party(group))))


def by_group(members: Iterable[Member]) -> dict[str, list[Member]]:
    """Members by group, both in the order in which they are served."""
    groups: dict[str, list[Member]] = defaultdict(list)
    for member in sorted(members, key=lambda each: each.rank):
        groups[member.group].append(member)
    return groups


def is_whole(group: list[Member]) -> bool:
    """Whether all services are there, and each that wants replicas has one with a node, or all but one serve."""
    waiting = [each for each in group if each.wanted and not each.serves]
    return len(group) >= _size(group) and (len(waiting) < 2 or not _missing(group))


def _turns(group: list[Member], inventory: Inventory, left: Left, turned_away: str) -> list[tuple[Member, Turn]]:
    if is_whole(group):
        return [(each, ALONE) for each in group]
    name, size, role, lacking = _name(group), _size(group), Role.WAITS, []
    if len(group) < size:
        text = f"group {name} has {len(group)} of its {size} services with a valid spec; they start together"
    elif turned_away:
        text = (
            f"group {name} starts when all of its services can: no node was found for {turned_away}; tried again later"
        )
    else:
        lacking = _place(_missing(group), inventory, left)
        text = (
            f"group {name} starts when all of its services can: not yet {', '.join(each.service for each in lacking)}"
        )
        role = Role.WAITS if lacking else Role.FIRST
    held = Turn(role, text if role is Role.WAITS else "")
    nowhere = {each.service for each in lacking if fits_nowhere(each, inventory)}
    return [(each, Turn(Role.LACKS, text) if each.service in nowhere else held) for each in group]


def fits_nowhere(member: Member, inventory: Inventory) -> bool:
    """Whether no node has devices for it as they are: what others will take first is not theirs yet."""
    demand = member.demand
    return demand is not None and all(
        inventory.left(node, demand.resource) < demand.count for node in inventory.suitable(demand)
    )


def _size(group: list[Member]) -> int:
    """Services that it is to have; where they differ, the most that one of them says."""
    return max(each.size for each in group)


def _name(group: list[Member]) -> str:
    return group[0].group.rpartition("/")[2]


def _missing(group: list[Member]) -> list[Member]:
    return [each for each in group if each.wanted and not each.placed and not each.serves]


def _place(missing: list[Member], inventory: Inventory, left: Left) -> list[Member]:
    """Find a node for one replica of each: those with the fewest nodes to choose from, then the largest, come first.

    Returns those for which none was left. What is taken is noted in `left` if nobody is turned away.
    """
    trial, without = dict(left), []
    able = [(each, each.demand, inventory.suitable(each.demand)) for each in missing if each.demand is not None]
    able.sort(key=lambda each: (len(each[2]), -each[1].count, each[0].service))
    for member, demand, nodes in able:
        rooms = {
            node.name: trial.get((node.name, demand.resource), inventory.left(node, demand.resource)) for node in nodes
        }
        fits = [(room, name) for name, room in rooms.items() if room >= demand.count]
        if not fits:
            without.append(member)
            continue
        room, name = min(fits)
        trial[name, demand.resource] = room - demand.count
    if not without:
        left.update(trial)
    return without


def _party(group: list[Member]) -> tuple[Waiter, ...]:
    """What preemption has to find devices for, all of it or nothing."""
    missing = _missing(group)
    if len(group) < _size(group) or is_whole(group) or any(each.helpless for each in missing):
        return ()
    return tuple(
        Waiter(each.service, each.demand, each.priority, each.since) for each in missing if each.demand is not None
    )
