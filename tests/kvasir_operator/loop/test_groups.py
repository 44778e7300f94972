"""Services that start together, in the simulated cluster: the whole loop, and a scheduler that knows nothing of groups.

The test's scheduler binds pods in a random order; devices may be taken by pods that the operator does not see.
"""

import copy
from random import Random
from typing import Any

import pytest

from kvasir_operator.cluster import NODES, PODS, SERVICES_OF_OURS
from kvasir_operator.resources import names
from kvasir_operator.store import ServiceKey
from tests.kvasir_operator.loop import harness
from tests.kvasir_operator.loop.fake_cluster import Manifest, inference_service, service_address
from tests.kvasir_operator.loop.harness import Loop
from tests.kvasir_operator.loop.test_devices import SCHEDULER_SAYS
from tests.kvasir_operator.loop.test_preemption import ready, size
from tests.kvasir_operator.placement.nodes import gpu_node


@pytest.fixture(autouse=True)
def _blind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "SETTINGS", harness.SETTINGS.model_copy(update={"inspect_models": False}))


class Cluster:
    """Services of one namespace on one node with devices."""

    def __init__(self, loop: Loop, devices: int) -> None:
        self.loop = loop
        self.devices = devices
        self.unseen = 0
        self.random = Random(7)
        self.services: dict[ServiceKey, Any] = {}
        loop.observer.devices.on_change = lambda _: None

    def apply(self, name: str, group: str = "rag", *, count: int = 1, services: int = 2, **spec: Any) -> None:
        accelerator = {"count": count} if count else {"vendor": "cpu"}
        start = {"group": {"name": group, "services": services}} if group else {}
        manifest = inference_service(name, accelerator=accelerator, **start, **spec)
        self.loop.cluster.store(service_address(name), manifest, "ADDED")
        key = ServiceKey("team", name)
        self.services[key] = self.loop.reconciler._make_service(key)

    async def steps(self, count: int) -> None:
        for _ in range(count):
            self.loop.clock.move(2.5)
            self.loop.cluster.finish_deletions()
            self.schedule()
            for pod in self.loop.cluster.all(PODS):
                if pod["spec"].get("nodeName"):
                    self.loop.cluster.start_pod(pod)
            for key, state in self.services.items():
                await self.loop.reconciler._guarded_turn(key, state)

    def schedule(self) -> None:
        pods = self.loop.cluster.all(PODS)
        self.random.shuffle(pods)
        taken = self.unseen + sum(size(pod) for pod in pods if pod["spec"].get("nodeName"))
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

    def pods(self, name: str) -> list[Manifest]:
        return [pod for pod in self.loop.cluster.all(PODS) if pod["metadata"]["labels"][names.SERVICE_LABEL] == name]

    def placed(self, *services: str) -> list[int]:
        return [sum(bool(pod["spec"].get("nodeName")) for pod in self.pods(name)) for name in services]

    def serving(self, *services: str) -> list[int]:
        return [sum(ready(pod) for pod in self.pods(name)) for name in services]

    def told(self, name: str, kind: str) -> str:
        conditions = self.loop.cluster.objects[service_address(name)]["status"]["conditions"]
        return next((str(each["message"]) for each in conditions if each["type"] == kind), "")


async def cluster(devices: int) -> Cluster:
    loop = Loop(replicas=0)
    loop.cluster.store((NODES, "", "gpu-1"), gpu_node("gpu-1", count=devices), "ADDED")
    await loop.start()
    await loop.observer.devices.fill(loop.cluster)  # type: ignore[arg-type]
    return Cluster(loop, devices)


async def test_nothing_is_made_before_all_are_there_and_fit() -> None:
    found = await cluster(2)
    found.apply("chat", count=2)
    await found.steps(4)
    assert found.pods("chat") == []
    told = "group rag has 1 of its 2 services with a valid spec; they start together"
    assert found.told("chat", "AcceleratorAvailable").startswith(f"{told}; a replica needs 2 nvidia.com/gpu")
    found.apply("embed")
    await found.steps(4)
    assert found.placed("chat", "embed") == [0, 0]
    assert found.pods("chat") == found.pods("embed") == []
    assert "not yet team/embed" in found.told("chat", "Progressing")


async def test_what_fits_nowhere_shows_an_autoscaler_of_nodes_what_is_missing() -> None:
    """By a pod that waits; the other one makes none."""
    found = await cluster(1)
    found.apply("chat", count=2)
    found.apply("embed")
    await found.steps(30)
    assert ([len(found.pods(name)) for name in ("chat", "embed")], found.placed("chat")) == ([1, 0], [0])
    found.devices = 3
    found.loop.observer.devices.notice(
        "MODIFIED", gpu_node("gpu-1", count=3) | {"metadata": {**gpu_node("gpu-1")["metadata"], "resourceVersion": "9"}}
    )
    await found.steps(12)
    assert found.serving("chat", "embed") == [1, 1]


async def test_all_start_at_once_and_have_all_their_replicas_then() -> None:
    """One replica each first, so that the others of one service do not take the place of another."""
    found = await cluster(3)
    found.apply("chat", replicas=3)
    found.apply("embed")
    await found.steps(1)
    assert [len(found.pods(name)) for name in ("chat", "embed")] == [1, 1]
    await found.steps(8)
    assert (found.serving("embed"), len(found.pods("chat"))) == ([1], 3)
    assert found.serving("chat") == [2]


async def test_services_without_devices_wait_for_those_with() -> None:
    found = await cluster(0)
    found.apply("front", count=0)
    found.apply("chat")
    await found.steps(6)
    assert (found.pods("front"), found.placed("chat")) == ([], [0])
    assert "not yet team/chat" in found.told("front", "Progressing")


async def test_two_groups_never_hold_half_of_the_devices_each() -> None:
    """Either would fit; in the order in which the scheduler sees their pods each could get one."""
    found = await cluster(3)
    for group in ("one", "two"):
        for part in ("a", "b"):
            found.apply(f"{group}-{part}", group)
    held: list[list[int]] = []
    for _ in range(20):
        await found.steps(1)
        held = [found.placed(f"{group}-a", f"{group}-b") for group in ("one", "two")]
        assert [1, 1] in held or held == [[0, 0], [0, 0]] or [0, 0] in held
    assert sorted(held) == [[0, 0], [1, 1]]
    assert sorted(found.serving("one-a", "two-a")) == [0, 1]


async def test_what_was_given_to_one_is_given_back_when_another_is_turned_away() -> None:
    """Half of the devices are taken by pods that the operator does not see."""
    found = await cluster(2)
    found.unseen = 1
    found.apply("chat")
    found.apply("embed")
    await found.steps(3)
    assert sorted(found.placed("chat", "embed")) == [0, 1]
    assert found.serving("chat", "embed") == [0, 0], "the one that has its node takes no traffic"
    held = 0
    for _ in range(120):
        await found.steps(1)
        held += sum(found.placed("chat", "embed"))
    assert held * 2.5 <= 60, "of 300 s half a minute at most, and again for each further attempt"
    assert "tried again later" in found.told("chat", "AcceleratorAvailable")
    found.unseen = 0
    await found.steps(120)
    assert found.serving("chat", "embed") == [1, 1]


async def test_a_group_that_serves_goes_on_when_one_fails() -> None:
    """The others are not taken down; the one that is missing comes back when there is room."""
    found = await cluster(2)
    found.apply("chat")
    found.apply("embed")
    await found.steps(8)
    [before] = found.pods("chat")
    found.loop.cluster.vanish((PODS, "team", found.pods("embed")[0]["metadata"]["name"]))
    found.unseen = 1
    await found.steps(30)
    assert [pod["metadata"]["uid"] for pod in found.pods("chat")] == [before["metadata"]["uid"]]
    assert found.serving("chat", "embed") == [1, 0]
    found.unseen = 0
    await found.steps(8)
    assert found.serving("chat", "embed") == [1, 1]


async def test_joining_a_group_takes_nothing_down() -> None:
    found = await cluster(1)
    found.apply("chat", "")
    await found.steps(8)
    key = (SERVICES_OF_OURS, "team", "chat")
    manifest = copy.deepcopy(found.loop.cluster.objects[key])
    manifest["spec"]["group"] = {"name": "rag", "services": 2}
    manifest["metadata"]["generation"] += 1
    found.loop.cluster.store(key, manifest, "MODIFIED")
    await found.steps(20)
    assert found.serving("chat") == [1]


async def test_a_group_of_a_higher_priority_drains_only_for_all_of_it() -> None:
    """One of the two replicas above the floor would do for one of them alone."""
    found = await cluster(4)
    found.apply("batch", "", replicas=4, scaling={"minReplicas": 3, "maxReplicas": 4})
    await found.steps(8)
    for name in ("chat", "embed"):
        found.apply(name, priority=10)
    await found.steps(16)
    assert (found.serving("batch"), found.placed("chat", "embed")) == ([4], [0, 0])
    key = service_address("batch")
    manifest = copy.deepcopy(found.loop.cluster.objects[key])
    manifest["spec"]["scaling"]["minReplicas"] = 2
    manifest["metadata"]["generation"] += 1
    found.loop.cluster.store(key, manifest, "MODIFIED")
    await found.steps(30)
    assert (found.serving("chat", "embed"), found.serving("batch")) == ([1, 1], [2])
