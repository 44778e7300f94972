"""The real loop on a cluster in memory, one turn at a time."""

import asyncio
import copy
from datetime import timedelta
from typing import Any, cast

from kvasir_operator import sync
from kvasir_operator.cluster import NODES, PODS, Cluster, Kind
from kvasir_operator.events import EventRecorder
from kvasir_operator.execute import Executor
from kvasir_operator.observe import Observer
from kvasir_operator.planning.plan import make_plan
from kvasir_operator.planning.reading import read_pod
from kvasir_operator.planning.state import Pod, Stage
from kvasir_operator.reconciler import Reconciler
from kvasir_operator.scrape import Scraper
from kvasir_operator.settings import Settings
from kvasir_operator.status_writer import StatusWriter
from kvasir_operator.store import KINDS, ServiceKey, Store
from kvasir_operator.tokens import Tokens
from tests.kvasir_operator.loop.fake_cluster import (
    Clock,
    Died,
    FakeCluster,
    FakeScraper,
    Manifest,
    inference_service,
    service_address,
)

BESIDE = 8
"""Turns of the event loop that works beside the service's task get before each of its own."""
KEY = ServiceKey("team", "tiny")
SETTINGS = Settings(backoff_initial_seconds=0.5, backoff_max_seconds=4, inspect_models=False)


class Loop:
    """A cluster with one service, and an operator that can be started anew."""

    def __init__(self, **spec: Any) -> None:
        self.clock = Clock()
        self.cluster = FakeCluster(self.clock)
        self.scraper = FakeScraper(self.cluster)
        self.lost_events = 0
        self.repeated: list[tuple[Kind, str, Manifest]] = []
        self.cluster.watchers.append(self._deliver)
        self.cluster.store(service_address(), inference_service(**spec), "ADDED")

    async def start(self) -> None:
        """Start an operator; the one before, if any, is forgotten with all it knew."""
        cluster, scraper = cast("Cluster", self.cluster), cast("Scraper", self.scraper)
        self.store = Store()
        self.repeated = []
        tokens = Tokens(cluster, self.clock)
        self.observer = Observer(self.store, tokens, scraper, cluster, SETTINGS, self.clock)
        self.reconciler = Reconciler(
            self.store,
            self.observer,
            Executor(cluster, scraper, self.store, tokens, SETTINGS, self.clock, self.observer.warmth),
            EventRecorder(cluster, self.clock, "test"),
            lambda key: StatusWriter(cluster, self.store, key, self.clock),
            SETTINGS,
            self.clock,
        )
        self.state = self.reconciler._make_service(KEY)
        await sync.fill(self.store, cluster, [])

    async def turn(self) -> float | None:
        """One turn of the service's task; an operator that dies in it is started anew."""
        for _ in range(BESIDE):
            await asyncio.sleep(0)
        try:
            return await self.reconciler._guarded_turn(KEY, self.state)
        except Died:
            await self.start()
            return 0.0

    async def settle(self, turns: int = 200) -> None:
        """Let a healthy cluster and the operator come to rest; fails if they do not."""
        for _ in range(turns):
            self.kubelet()
            wait = await self.turn()
            self.clock.move(max(0.5, min(wait or 0.0, 30.0)))
            if await self.converged():
                return
        raise AssertionError(f"not settled: {self.describe()}")

    async def resync(self) -> None:
        """What the periodic comparison does: heal lost events."""
        cluster = cast("Cluster", self.cluster)
        for kind in (service_address()[0], PODS):
            await sync._compare(self.store, cluster, kind, None)
        await sync.fill(self.store, cluster, [])

    def kubelet(self) -> None:
        """One step for every pod."""
        self.cluster.finish_deletions()
        for pod in self.cluster.pods():
            if pod["status"]["phase"] != "Failed":
                self.cluster.start_pod(pod)
        for engine in self.cluster.engines.values():
            if engine.draining:
                engine.inflight = 0

    async def converged(self) -> bool:
        """Whether exactly the wanted pods exist, all of the right revision, serving, and nothing is planned."""
        snapshot = await self.observer.look(KEY)
        if snapshot is None or snapshot.spec is None:
            return True
        found = [(pod.stage, pod.revision) for pod in self.pods()]
        wanted = [(Stage.SERVING, snapshot.target.name)] * snapshot.spec.replicas
        return found == wanted and make_plan(snapshot, self.clock()).empty

    def change(self, **spec: Any) -> None:
        """Edit the spec, as a user does."""
        service = copy.deepcopy(self.service())
        service["spec"] |= spec
        service["metadata"]["generation"] += 1
        self.cluster.store(service_address(), service, "MODIFIED")

    def annotate(self, **annotations: str | None) -> None:
        """`kubectl annotate`, with the domain left out; None takes one away."""
        service = copy.deepcopy(self.service())
        found = service["metadata"].setdefault("annotations", {})
        for key, value in annotations.items():
            found[f"kvasir.dev/{key.replace('_', '-')}"] = value
        service["metadata"]["annotations"] = {key: value for key, value in found.items() if value is not None}
        self.cluster.store(service_address(), service, "MODIFIED")

    async def run(self, seconds: float, step: float = 1.0) -> None:
        """Let time pass in a healthy cluster, with the operator at work."""
        end = self.clock() + timedelta(seconds=seconds)
        while self.clock() < end:
            self.kubelet()
            await self.turn()
            self.clock.move(step)

    def service(self) -> Manifest:
        return self.cluster.objects[service_address()]

    def pods(self) -> list[Pod]:
        return [read_pod(each) for each in self.cluster.pods()]

    def condition(self, kind: str) -> Manifest:
        conditions = self.service().get("status", {}).get("conditions", [])
        return next((each for each in conditions if each["type"] == kind), {})

    def describe(self) -> str:
        pods = [(pod.name, pod.stage, pod.revision) for pod in self.pods()]
        return f"pods {pods}, status {self.service().get('status')}"

    def _deliver(self, kind: Kind, change: str, manifest: Manifest) -> None:
        """Pass a watch event on, unless it is to be lost or nobody watches its kind."""
        if kind not in (*KINDS, NODES):
            return
        if self.lost_events > 0:
            self.lost_events -= 1
            return
        self.repeated = [*self.repeated[-20:], (kind, change, manifest)]
        if hasattr(self, "reconciler"):
            self.reconciler.notice(kind, change, manifest)
