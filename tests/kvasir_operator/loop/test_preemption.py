"""Services of different priorities on the same devices, in the simulated cluster: the whole loop, a plain scheduler.

Nobody runs but the two services; time is moved by the test.
"""

import copy
from typing import Any

import pytest

from kvasir_operator.cluster import NODES, PODS
from kvasir_operator.resources import names
from kvasir_operator.store import ServiceKey
from tests.kvasir_operator.loop import harness
from tests.kvasir_operator.loop.fake_cluster import Manifest, inference_service, service_address
from tests.kvasir_operator.loop.harness import Loop
from tests.kvasir_operator.loop.test_devices import SCHEDULER_SAYS
from tests.kvasir_operator.placement.nodes import GPU, gpu_node

LOW, HIGH = ServiceKey("team", "tiny"), ServiceKey("team", "chat")


class Contest:
    """`tiny` and `chat` on one node with devices, and a scheduler that prefers nobody."""

    def __init__(self, loop: Loop, devices: int) -> None:
        self.loop = loop
        self.devices = devices
        self.services = {LOW: loop.state, HIGH: loop.reconciler._make_service(HIGH)}
        self.most_taken = 0
        loop.observer.devices.on_change = lambda _: None

    def schedule(self) -> None:
        """Bind the youngest first: the worst that a scheduler without priorities may do."""
        pods = sorted(self.pods(), key=lambda pod: pod["metadata"]["creationTimestamp"], reverse=True)
        taken = sum(size(pod) for pod in pods if pod["spec"].get("nodeName"))
        for pod in pods:
            if pod["spec"].get("nodeName") or "deletionTimestamp" in pod["metadata"]:
                continue
            changed = copy.deepcopy(pod)
            if taken + size(pod) <= self.devices:
                taken += size(pod)
                changed["spec"]["nodeName"] = "gpu-1"
                changed["status"]["conditions"] = [{"type": "PodScheduled", "status": "True"}]
            else:
                words = {"reason": "Unschedulable", "message": SCHEDULER_SAYS}
                changed["status"]["conditions"] = [{"type": "PodScheduled", "status": "False", **words}]
            if changed != pod:
                self.loop.cluster.update(changed)
        self.most_taken = max(self.most_taken, taken)

    async def steps(self, count: int, *, finish: bool = True) -> None:
        for _ in range(count):
            self.loop.clock.move(2.5)
            if finish:
                for engine in self.loop.cluster.engines.values():
                    engine.inflight = 0 if engine.draining else engine.inflight
            self.loop.cluster.finish_deletions()
            self.schedule()
            for pod in self.pods():
                if pod["spec"].get("nodeName"):
                    self.loop.cluster.start_pod(pod)
            for key, state in self.services.items():
                await self.loop.reconciler._guarded_turn(key, state)

    def pods(self, service: ServiceKey | None = None) -> list[Manifest]:
        found = self.loop.cluster.all(PODS)
        return [
            pod for pod in found if service is None or pod["metadata"]["labels"][names.SERVICE_LABEL] == service.name
        ]

    def serving(self, service: ServiceKey) -> int:
        return sum(ready(pod) for pod in self.pods(service))

    def condition(self, service: ServiceKey, kind: str) -> Manifest:
        conditions = self.loop.cluster.objects[service_address(service.name)]["status"]["conditions"]
        return next((each for each in conditions if each["type"] == kind), {})

    def apply(self, **spec: Any) -> None:
        manifest = inference_service("chat", accelerator={"count": 2}, **spec)
        self.loop.cluster.store(service_address("chat"), manifest, "ADDED")

    def remove(self, service: ServiceKey) -> None:
        for pod in self.pods(service):
            self.loop.cluster.vanish((PODS, "team", pod["metadata"]["name"]))
        self.loop.cluster.vanish(service_address(service.name))


def size(pod: Manifest) -> int:
    return int(pod["spec"]["containers"][0]["resources"]["limits"].get(GPU, 0))


def ready(pod: Manifest) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", []))


@pytest.fixture(autouse=True)
def _blind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "SETTINGS", harness.SETTINGS.model_copy(update={"inspect_models": False}))


async def contest(low: dict[str, Any], devices: int = 4) -> Contest:
    """`tiny` has all devices and serves."""
    loop = Loop(accelerator={"count": 1}, **low)
    loop.cluster.store((NODES, "", "gpu-1"), gpu_node("gpu-1", count=devices), "ADDED")
    await loop.start()
    await loop.observer.devices.fill(loop.cluster)  # type: ignore[arg-type]
    found = Contest(loop, devices)
    await found.steps(8)
    assert found.serving(LOW) == devices
    return found


ELASTIC = {"replicas": 4, "scaling": {"minReplicas": 1, "maxReplicas": 4}}


async def test_a_higher_priority_takes_replicas_above_the_floor_by_draining_them() -> None:
    """No pod is deleted with requests in flight; then the others serve, and the rest of the low one goes on."""
    found = await contest(ELASTIC)
    for engine in found.loop.cluster.engines.values():
        engine.inflight = 3
    lost = []
    found.loop.cluster.on_delete = lambda pod, engine: lost.append(pod) if engine and engine.inflight else None
    found.apply(priority=10)
    await found.steps(8, finish=False)
    assert found.serving(HIGH) == 0, "they still answer"
    assert len([pod for pod in found.pods(LOW) if not ready(pod)]) == 2, "two of them drain"
    await found.steps(10)
    assert (found.serving(HIGH), found.serving(LOW), lost) == (1, 2, [])
    assert found.most_taken <= 4
    await found.steps(40)
    assert (found.serving(HIGH), found.serving(LOW)) == (1, 2)


async def test_the_one_that_gave_says_what_it_waits_for() -> None:
    found = await contest(ELASTIC)
    found.apply(priority=10)
    await found.steps(4)
    told = found.condition(LOW, "AcceleratorAvailable")
    assert (told["status"], told["reason"]) == ("False", "WaitingForGPU")
    assert told["message"].endswith("place 2 in the queue, after team/chat")
    reasons = {event["reason"] for event in found.loop.cluster.objects.values() if "involvedObject" in event}
    assert "Draining" in reasons


async def test_a_fixed_number_of_replicas_is_kept() -> None:
    """Without scaling all replicas are the floor: the higher priority waits like everybody."""
    found = await contest({"replicas": 4})
    found.apply(priority=10)
    await found.steps(20)
    assert (found.serving(HIGH), found.serving(LOW)) == (0, 4)
    assert "team/tiny has 4; place 1 in the queue" in found.condition(HIGH, "AcceleratorAvailable")["message"]


async def test_equal_priorities_take_nothing_from_each_other() -> None:
    found = await contest(ELASTIC)
    found.apply()
    await found.steps(20)
    assert (found.serving(HIGH), found.serving(LOW)) == (0, 4)


async def test_a_drain_is_called_back_when_nobody_waits_any_more() -> None:
    found = await contest(ELASTIC)
    for engine in found.loop.cluster.engines.values():
        engine.inflight = 3
    found.apply(priority=10)
    await found.steps(8, finish=False)
    before = {pod["metadata"]["uid"] for pod in found.pods(LOW)}
    found.remove(HIGH)
    del found.services[HIGH]
    await found.steps(12, finish=False)
    assert found.serving(LOW) == 4
    assert {pod["metadata"]["uid"] for pod in found.pods(LOW)} == before


async def test_the_devices_come_back_when_the_higher_priority_leaves() -> None:
    found = await contest(ELASTIC)
    found.apply(priority=10)
    await found.steps(20)
    assert found.serving(HIGH) == 1
    found.remove(HIGH)
    del found.services[HIGH]
    await found.steps(20)
    assert found.serving(LOW) == 4


async def test_whom_it_may_concern_is_woken() -> None:
    """A service that gives devices is at rest: nobody else would look at it for half a minute."""
    found = await contest(ELASTIC)
    woken: list[ServiceKey] = []
    found.loop.observer.devices.on_change = woken.append
    found.apply(priority=10)
    await found.steps(3)
    assert LOW in woken
