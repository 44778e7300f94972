"""The nodes with GPUs as they are watched, and where services stand that wait for devices.

Nodes are those that GPU feature discovery has labelled; the pods are the replicas in the store. The view is made for
all services at once and kept for a moment, so that a thousand that wait cost no more than one.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from kvasir_operator import metrics
from kvasir_operator.cluster import NODES, PODS, Cluster
from kvasir_operator.errors import ApiError
from kvasir_operator.placement.inventory import Claim, DeviceNode, Inventory, devices_of, read_demand, read_node
from kvasir_operator.placement.queue import Standing, Waiter, first_of_each, standing_of
from kvasir_operator.planning.reading import read_time
from kvasir_operator.resources import names
from kvasir_operator.store import ServiceKey, Store, key_of, version_of

log = logging.getLogger(__name__)

Manifest = Mapping[str, Any]

NODE_SELECTOR: Final = f"{names.GPU_PRESENT_LABEL}=true"
FRESH_FOR: Final = timedelta(seconds=2)
"""Age up to which a view of all devices counts as news."""
COMPARE_SECONDS: Final = 300.0
"""Time between two lists of the nodes: a watch that restarts may miss a deletion."""

_EPOCH: Final = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class _View:
    """Who waits, in order, and what there is."""

    made_at: datetime
    queue: tuple[Waiter, ...]
    inventory: Inventory


class Devices:
    """Knows the nodes with devices. Changed by `notice` and `fill` alone."""

    def __init__(self, store: Store, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._clock = clock
        self._nodes: dict[str, tuple[int, DeviceNode]] = {}
        self._view: _View | None = None

    def notice(self, change: str | None, manifest: Manifest) -> None:
        """Take in a watch event of a node; of two versions the newer one counts."""
        name = manifest["metadata"]["name"]
        if change == "DELETED":
            self._nodes.pop(name, None)
        elif version_of(manifest) > self._nodes.get(name, (-1, None))[0]:
            self._nodes[name] = version_of(manifest), read_node(manifest)

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

    async def keep_comparing(self, cluster: Cluster) -> None:
        """List the nodes every five minutes, for ever."""
        while True:
            await asyncio.sleep(COMPARE_SECONDS)
            await self.fill(cluster)

    def standing(self, key: ServiceKey) -> Standing | None:
        """Where the service stands among those that wait for devices; None when none of its pods does."""
        view = self._look()
        return standing_of(str(key), view.queue, view.inventory)

    def _look(self) -> _View:
        now = self._clock()
        if self._view is None or now - self._view.made_at >= FRESH_FOR:
            pods = list(self._store.all(PODS))
            nodes = tuple(node for _, node in self._nodes.values())
            claims = tuple(claim for pod in pods for claim in _claims(pod))
            queue = first_of_each(waiter for pod in pods for waiter in _waits(pod))
            self._view = _View(now, tuple(queue), Inventory(nodes, claims))
        return self._view


def _claims(pod: Manifest) -> Iterator[Claim]:
    """The devices of a pod that is on a node and has not ended."""
    node = pod["spec"].get("nodeName", "")
    if node and pod.get("status", {}).get("phase") not in ("Succeeded", "Failed"):
        for resource, count in devices_of(pod["spec"]).items():
            yield Claim(str(key_of(PODS, pod)), node, resource, count)


def _waits(pod: Manifest) -> Iterator[Waiter]:
    """A pod for which the scheduler found no node."""
    if pod["spec"].get("nodeName") or "deletionTimestamp" in pod["metadata"]:
        return
    conditions = pod.get("status", {}).get("conditions") or ()
    demand = read_demand(pod["spec"])
    if demand and any(each["type"] == "PodScheduled" and each["status"] == "False" for each in conditions):
        since = read_time(pod["metadata"].get("creationTimestamp")) or _EPOCH
        yield Waiter(str(key_of(PODS, pod)), demand, pod["spec"].get("priority") or 0, since)
