"""The services of groups as they are seen in the store: what `placement.groups` decides from."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from kvasir_operator.api.conditions import Reason
from kvasir_operator.placement.groups import Member, by_group, fits_nowhere, is_whole
from kvasir_operator.placement.inventory import DeviceDemand, Inventory
from kvasir_operator.planning.times import read_time
from kvasir_operator.resources import names
from kvasir_operator.store import ServiceKey

Manifest = Mapping[str, Any]

TURNED_AWAY_AFTER: Final = timedelta(seconds=10)
"""How long a replica of a group may wait for a node before the others give theirs back: a scheduler needs less than a
second."""

TRIED_AGAIN_AFTER: Final = timedelta(seconds=30)
"""Wait after the first attempt that failed; doubled each time."""
LONGEST_WAIT: Final = timedelta(minutes=5)

NO_FAULT: Final = frozenset({Reason.WAITING_FOR_GPU, Reason.NO_MATCHING_NODE, Reason.UNSCHEDULABLE})
"""Failures of a service that devices, or other nodes, would mend."""

_EPOCH: Final = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class Applicant:
    """A service as far as devices are concerned: what one of its replicas needs, and since when it is there.

    `group` is the one that it starts with, of `group_size` services; empty without. `wanted` counts replicas.
    """

    key: ServiceKey
    demand: DeviceDemand | None
    priority: int
    since: datetime
    wanted: int = 1
    group: str = ""
    group_size: int = 0


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One that failed: what it was made with, how many failed in a row, until when none is made, and who failed."""

    basis: tuple[object, ...]
    count: int
    until: datetime
    services: str


class Attempts:
    """Remembers which groups failed to start a short while ago. What is lost with it costs one attempt."""

    def __init__(self) -> None:
        self._failed: dict[str, _Attempt] = {}

    def given_up(self, members: Iterable[Member], inventory: Inventory, nodes: int, now: datetime) -> dict[str, str]:
        """Take in what is seen; returns the groups that wait, with the services that were turned away.

        Another spec of a service, another service, or other nodes (`nodes` is then another number) begin anew.
        """
        groups = by_group(members)
        self._failed = {name: each for name, each in self._failed.items() if name in groups}
        for name, group in groups.items():
            basis = (nodes, *sorted((each.service, each.generation) for each in group))
            kept = self._failed.get(name)
            if kept is not None and (kept.basis != basis or is_whole(group)):
                del self._failed[name]
                kept = None
            failed = [each.service for each in group if each.turned_away and not fits_nowhere(each, inventory)]
            if failed and not is_whole(group) and (kept is None or now >= kept.until + TURNED_AWAY_AFTER):
                count = kept.count + 1 if kept is not None else 1
                wait = min(LONGEST_WAIT, TRIED_AGAIN_AFTER * 2 ** min(count - 1, 10))
                self._failed[name] = _Attempt(basis, count, now + wait, ", ".join(failed))
        return {name: each.services for name, each in self._failed.items() if now < each.until}

    def due(self, now: datetime) -> datetime | None:
        """When the next attempt may be made."""
        return min((each.until for each in self._failed.values() if each.until > now), default=None)


def member_of(applicant: Applicant, service: Manifest, pods: Iterable[Manifest], now: datetime) -> Member:
    """What is seen of a service and its pods."""
    replicas = [pod for pod in pods if _is_replica(pod)]
    placed = any(pod["spec"].get("nodeName") for pod in replicas)
    waiting = [pod for pod in replicas if _turned_away_at(pod) is not None and not pod["spec"].get("nodeName")]
    failing = not placed and _fails(service)
    resource = applicant.demand.resource if applicant.demand is not None else ""
    return Member(
        service=str(applicant.key),
        group=f"{applicant.key.namespace}/{applicant.group}",
        size=applicant.group_size,
        demand=applicant.demand,
        priority=applicant.priority,
        since=applicant.since,
        wanted=applicant.wanted > 0,
        placed=placed,
        serves=any(_condition(pod, "Ready").get("status") == "True" for pod in replicas),
        turned_away=failing or any(_is_turned_away(pod, now) for pod in waiting),
        helpless=failing or any(_is_turned_away(pod, now) and not _lacks(pod, resource) for pod in waiting),
        generation=int(service["metadata"].get("generation") or 0),
    )


def due(pods: Iterable[Manifest], now: datetime) -> datetime | None:
    """When the next replica will have waited for too long."""
    times = [at + TURNED_AWAY_AFTER for pod in pods if _is_replica(pod) and (at := _turned_away_at(pod)) is not None]
    return min((at for at in times if at > now), default=None)


def _is_replica(pod: Manifest) -> bool:
    labels = pod["metadata"].get("labels") or {}
    ended = pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
    looks = labels.get(names.COMPONENT_LABEL) == names.INSPECTION_COMPONENT
    return not (ended or looks or "deletionTimestamp" in pod["metadata"])


def _condition(pod: Manifest, kind: str) -> Manifest:
    conditions = pod.get("status", {}).get("conditions") or ()
    return next((each for each in conditions if each["type"] == kind), {})


def _turned_away_at(pod: Manifest) -> datetime | None:
    """When the pod was made, if the scheduler found no node for it."""
    if pod["spec"].get("nodeName") or _condition(pod, "PodScheduled").get("status") != "False":
        return None
    return read_time(pod["metadata"].get("creationTimestamp")) or _EPOCH


def _is_turned_away(pod: Manifest, now: datetime) -> bool:
    at = _turned_away_at(pod)
    return at is not None and now >= at + TURNED_AWAY_AFTER


def _lacks(pod: Manifest, resource: str) -> bool:
    return f"Insufficient {resource or '/'}" in (_condition(pod, "PodScheduled").get("message") or "")


def _fails(service: Manifest) -> bool:
    """Whether its status says that it failed, for a reason that no device would mend."""
    conditions = (service.get("status") or {}).get("conditions") or ()
    degraded: Manifest = next((each for each in conditions if each["type"] == "Degraded"), {})
    return degraded.get("status") == "True" and degraded.get("reason") not in NO_FAULT
