"""The nodes with GPUs as they are watched, where services stand that wait for devices, and who gives them some.

Nodes are those that GPU feature discovery has labelled; the pods are the replicas in the store. The view is made for
all services at once and kept until something changes, so that a thousand that wait cost no more than one.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from kvasir_operator import grouping, metrics
from kvasir_operator.cluster import NODES, PODS, Cluster
from kvasir_operator.errors import ApiError
from kvasir_operator.grouping import Applicant
from kvasir_operator.placement.groups import ALONE, Grouping, Role, Turn, decide
from kvasir_operator.placement.inventory import (
    Claim,
    DeviceNode,
    Inventory,
    devices_of,
    read_demand,
    read_node,
)
from kvasir_operator.placement.preemption import Holder, Party, Rank, Settlement, settle
from kvasir_operator.placement.queue import Standing, Waiter, first_of_each, standing_of
from kvasir_operator.planning.state import DRAINING_REASON
from kvasir_operator.planning.times import read_time
from kvasir_operator.resources import names
from kvasir_operator.store import ServiceKey, Store, key_of, version_of

log = logging.getLogger(__name__)

Manifest = Mapping[str, Any]

NODE_SELECTOR: Final = f"{names.GPU_PRESENT_LABEL}=true"
FRESH_FOR: Final = timedelta(seconds=2)
"""Age up to which a view of all devices counts as news, whatever has changed."""
COMPARE_SECONDS: Final = 300.0
"""Time between two lists of the nodes: a watch that restarts may miss a deletion."""

_EPOCH: Final = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class Position:
    """What concerns one service: its place in the queue, the replicas that it gives, and for whom it makes none."""

    standing: Standing | None = None
    yields: frozenset[str] = frozenset()
    kept_for: str = ""
    turn: Turn = ALONE


@dataclass(frozen=True, slots=True)
class _View:
    """Who waits, in order, what there is, and what follows for all. `version` is that of what it was made from.

    `due` is when it is to be made again, though nothing has changed.
    """

    made_at: datetime
    version: tuple[int, int]
    queue: tuple[Waiter, ...]
    inventory: Inventory
    settlement: Settlement
    turns: Mapping[str, Turn]
    due: datetime | None


class Devices:
    """Knows the nodes: the devices of some, and which of all are silent. Changed by `notice` and `fill` alone."""

    def __init__(self, store: Store, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._clock = clock
        self._nodes: dict[str, tuple[int, DeviceNode]] = {}
        self._silent: dict[str, datetime] = {}
        self._changes = 0
        self._view: _View | None = None
        self._held: set[ServiceKey] = set()
        self._attempts = grouping.Attempts()
        self.in_groups: Callable[[], Iterable[Applicant]] = tuple
        """The services that start with others."""
        self.on_change: Callable[[ServiceKey], None] = lambda _: None
        """Called for services that give devices, or may take them, since others began or ceased to wait."""

    def notice(self, change: str | None, manifest: Manifest) -> None:
        """Take in a watch event of a node; of two versions the newer one counts. Others' devices are left out."""
        name = manifest["metadata"]["name"]
        self._silent.pop(name, None)
        since = silent_since(manifest)
        if change != "DELETED" and since is not None:
            self._silent[name] = since
        present = (manifest["metadata"].get("labels") or {}).get(names.GPU_PRESENT_LABEL) == "true"
        if change == "DELETED" or not present:
            self._changes += self._nodes.pop(name, None) is not None
            return
        known, node = self._nodes.get(name), read_node(manifest)
        if known is None or version_of(manifest) > known[0]:
            self._changes += known is None or known[1] != node
            self._nodes[name] = version_of(manifest), node

    async def fill(self, cluster: Cluster) -> None:
        """List the nodes; what cannot be had is logged, since it only costs words in conditions."""
        listed: set[str] = set()
        try:
            async for page, _ in cluster.pages(NODES, query={"labelSelector": NODE_SELECTOR}):
                for manifest in page:
                    self.notice("MODIFIED", manifest)
                    listed.add(manifest["metadata"]["name"])
        except ApiError as error:
            metrics.ERRORS.labels("nodes", error.reason).inc()
            log.warning("the nodes with devices could not be listed: %s", error)
            return
        for name in self._nodes.keys() - listed:
            del self._nodes[name]
            self._changes += 1

    async def keep_comparing(self, cluster: Cluster) -> None:
        """List the nodes every five minutes, for ever."""
        while True:
            await asyncio.sleep(COMPARE_SECONDS)
            await self.fill(cluster)

    def silent_since(self, node: str) -> datetime | None:
        """When a node was last heard of; None for one that reports."""
        return self._silent.get(node)

    @property
    def changes(self) -> int:
        """Rises with every change of what nodes offer; not with their heartbeats."""
        return self._changes

    def inventory(self) -> Inventory:
        """The nodes with devices, and what replicas have of them."""
        return self._look().inventory

    def position(self, applicant: Applicant) -> Position:
        """Where the service stands among those that want devices."""
        view, service = self._look(), str(applicant.key)
        if applicant.group and service not in view.turns:  # it is newer than the view
            view = self._look(anew=True)
        turn = view.turns.get(service, ALONE)
        if applicant.demand is None:
            return Position(turn=turn)
        kept = view.settlement.excluding(applicant.priority, applicant.demand)
        yields = frozenset(uid for uid in view.settlement.yields if self._is_of(applicant.key, uid))
        queue = view.queue
        waits = kept is not None or turn.message
        if waits and all(waiter.service != service for waiter in queue):
            own = Waiter(service, applicant.demand, applicant.priority, applicant.since)
            queue = tuple(sorted([*queue, own], key=lambda each: each.rank))
        if kept is not None or yields:
            self._held.add(applicant.key)
        return Position(
            standing_of(service, queue, view.inventory),
            yields,
            kept.waiter.service if kept is not None else "",
            turn,
        )

    def _is_of(self, key: ServiceKey, uid: str) -> bool:
        return any(pod["metadata"]["uid"] == uid for pod in self._store.of_service(key, PODS))

    def _look(self, *, anew: bool = False) -> _View:
        now, version, before = self._clock(), (self._store.version, self._changes), self._view
        if before is not None and not anew and _is_fresh(before, version, now):
            return before
        pods = list(self._store.all(PODS))
        inventory = Inventory(
            tuple(node for _, node in self._nodes.values()), tuple(claim for pod in pods for claim in _claims(pod))
        )
        queue = tuple(first_of_each(waiter for pod in pods for waiter in self._waits(pod)))
        together, comes_due = self._groups(inventory, now)
        parties = _in_order(queue, together)
        holders = [holder for pod in pods for holder in _holders(pod)] if parties else []
        ranks = {holder.service: self._rank(holder.service) for holder in holders}
        settlement = settle(parties, inventory, holders, ranks)
        self._view = _View(now, version, queue, inventory, settlement, together.turns, comes_due)
        if before is None or _gist(before.settlement) != _gist(settlement):
            self._tell({*ranks.keys(), *map(str, self._held)})
        turns = before.turns if before is not None else {}
        for service in {name for name, turn in together.turns.items() if turns.get(name, turn) != turn}:
            self.on_change(_key(service))
        return self._view

    def _groups(self, inventory: Inventory, now: datetime) -> tuple[Grouping, datetime | None]:
        """Roles of the services that start together, and when time alone changes them."""
        members, dues = [], []
        for applicant in self.in_groups():
            service, pods = self._store.service(applicant.key), self._store.of_service(applicant.key, PODS)
            if service is not None:
                members.append(grouping.member_of(applicant, service, pods, now))
                dues.append(grouping.due(pods, now))
        decided = decide(members, inventory, self._attempts.given_up(members, inventory, self._changes, now))
        dues.append(self._attempts.due(now))
        return decided, min((each for each in dues if each is not None), default=None)

    def _tell(self, services: set[str]) -> None:
        """Have those looked at whom it may concern that devices are given, or are not needed any more."""
        self._held = set()
        for service in services:
            self.on_change(_key(service))

    def _rank(self, service: str) -> Rank:
        manifest = self._store.service(_key(service))
        return read_rank(manifest.get("spec") or {}) if manifest is not None else Rank(0, 0)

    def _waits(self, pod: Manifest) -> Iterator[Waiter]:
        """A pod for which the scheduler found no node."""
        if pod["spec"].get("nodeName") or "deletionTimestamp" in pod["metadata"]:
            return
        conditions = {each["type"]: each for each in pod.get("status", {}).get("conditions") or ()}
        scheduled, demand = conditions.get("PodScheduled", {}), read_demand(pod["spec"])
        if demand is None or scheduled.get("status") != "False":
            return
        service = str(key_of(PODS, pod))
        yield Waiter(
            service=service,
            demand=demand,
            priority=self._rank(service).priority,
            since=read_time(pod["metadata"].get("creationTimestamp")) or _EPOCH,
            pod_priority=pod["spec"].get("priority") or 0,
            lacks_devices=f"Insufficient {demand.resource}" in (scheduled.get("message") or ""),
        )


def _is_fresh(view: _View, version: tuple[int, int], now: datetime) -> bool:
    if view.due is not None and now >= view.due:
        return False
    return view.version == version or now - view.made_at < FRESH_FOR


def _in_order(queue: Iterable[Waiter], groups: Grouping) -> list[Party]:
    """Who waits for devices: replicas of groups together, where their first one stands."""
    together = {name for name, turn in groups.turns.items() if turn.role is not Role.FREE}
    parties: list[Party] = [(waiter,) for waiter in queue if waiter.service not in together]
    return sorted([*parties, *groups.parties], key=lambda party: party[0].rank)


def read_rank(spec: Manifest) -> Rank:
    """Priority and floor of a service, from its spec as the API server gives it; what cannot be read is the default."""
    scaling = spec.get("scaling")
    floor = scaling.get("minReplicas", 1) if isinstance(scaling, dict) else spec.get("replicas", 1)
    priority = spec.get("priority", 0)
    return Rank(priority if isinstance(priority, int) else 0, floor if isinstance(floor, int) else 1)


def silent_since(node: Manifest) -> datetime | None:
    """When a node was last heard of, as its own controller judges; None for one that reports, or is new."""
    for condition in (node.get("status") or {}).get("conditions") or ():
        if condition["type"] == "Ready" and condition["status"] == "Unknown":
            return read_time(condition.get("lastTransitionTime")) or _EPOCH
    return None


def _key(service: str) -> ServiceKey:
    namespace, _, name = service.partition("/")
    return ServiceKey(namespace, name)


def _gist(settlement: Settlement) -> tuple[object, ...]:
    """What others notice of a settlement."""
    kept = tuple((each.waiter.service, each.node.name, each.left) for each in settlement.reservations)
    return kept, tuple(sorted(settlement.yields.items()))


def _claims(pod: Manifest) -> Iterator[Claim]:
    """The devices of a pod that is on a node and has not ended."""
    node = pod["spec"].get("nodeName", "")
    if node and pod.get("status", {}).get("phase") not in ("Succeeded", "Failed"):
        for resource, count in devices_of(pod["spec"]).items():
            yield Claim(str(key_of(PODS, pod)), node, resource, count)


def _holders(pod: Manifest) -> Iterator[Holder]:
    """The same, with what decides whether they may be taken."""
    conditions = {each["type"]: each for each in pod.get("status", {}).get("conditions") or ()}
    gate = conditions.get(names.SERVING_GATE, {})
    leaving = "deletionTimestamp" in pod["metadata"] or (
        gate.get("status") == "False" and gate.get("reason") == DRAINING_REASON
    )
    for claim in _claims(pod):
        yield Holder(
            uid=pod["metadata"]["uid"],
            service=claim.service,
            node=claim.node,
            resource=claim.resource,
            count=claim.count,
            since=read_time(pod["metadata"].get("creationTimestamp")) or _EPOCH,
            serving=conditions.get("Ready", {}).get("status") == "True",
            leaving=leaving,
        )
