"""Services that wait for devices, in the simulated cluster: what is missing, who has it, and the place in the queue."""

import copy
from datetime import timedelta
from typing import Any, cast

from kvasir_operator.api.base import format_time
from kvasir_operator.cluster import NODES, PODS, Cluster
from kvasir_operator.errors import ApiError
from kvasir_operator.resources import names
from kvasir_operator.store import owner_uid
from tests.kvasir_operator.loop.fake_cluster import FakeCluster, Manifest, address_of
from tests.kvasir_operator.loop.harness import KEY, Loop
from tests.kvasir_operator.placement.nodes import GPU, gpu_node

SCHEDULER_SAYS = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."


def add_node(cluster: FakeCluster, name: str, count: int, **more: Any) -> None:
    cluster.store((NODES, "", name), gpu_node(name, count=count, **more), "ADDED")


def add_replica(cluster: FakeCluster, service: str, count: int, node: str = "", age: int = 0) -> Manifest:
    """A pod of another service, on a node or waiting for one."""
    since = format_time(cluster.clock() - timedelta(seconds=age))
    pod = {
        "metadata": {
            "name": f"{service}-x",
            "namespace": "team",
            "uid": f"{service}-x",
            "labels": {names.SERVICE_LABEL: service},
            "creationTimestamp": since,
        },
        "spec": {"nodeName": node, "containers": [{"name": "runtime", "resources": {"limits": {GPU: str(count)}}}]},
        "status": {"phase": "Running" if node else "Pending", "conditions": [] if node else [unscheduled()]},
    }
    return cluster.store(address_of(pod), pod, "ADDED")


def unscheduled() -> Manifest:
    return {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": SCHEDULER_SAYS}


async def waiting(loop: Loop) -> str:
    """Have the scheduler find no node for the service's pods; returns what AcceleratorAvailable says then."""
    await loop.turn()
    for pod in loop.cluster.pods():
        if owner_uid(pod) == "tiny-uid":
            changed = copy.deepcopy(pod)
            changed["status"]["conditions"] = [unscheduled()]
            loop.cluster.update(changed)
    return await look(loop)


async def look(loop: Loop) -> str:
    loop.clock.move(15)
    await loop.turn()
    told = loop.condition("AcceleratorAvailable")
    assert (told["status"], told["reason"]) == ("False", "WaitingForGPU")
    return str(told["message"])


async def started(count: int = 2) -> Loop:
    loop = Loop(accelerator={"count": count}, parallelism={"tensor": count})
    await loop.start()
    add_node(loop.cluster, "gpu-1", 4)
    add_node(loop.cluster, "gpu-2", 1)
    return loop


async def test_a_service_that_waits_says_what_is_missing_who_has_it_and_its_place() -> None:
    loop = await started()
    add_replica(loop.cluster, "holder", 3, node="gpu-1")
    add_replica(loop.cluster, "earlier", 2, age=60)
    add_replica(loop.cluster, "later", 2, age=-60)
    assert await waiting(loop) == (
        "a replica needs 2 nvidia.com/gpu of one node; the node that it may use has 4, at most 1 left on one; "
        f"team/holder has 3; place 2 in the queue, after team/earlier. {loop_pod(loop)}: {SCHEDULER_SAYS} "
        "Add nodes with free devices, or lower what other services take."
    )


def loop_pod(loop: Loop) -> str:
    return next(pod.name for pod in loop.pods() if pod.name.startswith("tiny-"))


async def test_what_changes_among_the_others_changes_what_is_said() -> None:
    """A holder that ends, a service ahead that is served, a node that comes and one that goes."""
    loop = await started()
    holder = add_replica(loop.cluster, "holder", 3, node="gpu-1")
    ahead = add_replica(loop.cluster, "ahead", 2, age=60)
    assert "team/holder has 3; place 2 in the queue, after team/ahead" in await waiting(loop)
    loop.cluster.update({**ahead, "spec": {**ahead["spec"], "nodeName": "gpu-1"}})
    assert "team/holder has 3, team/ahead has 2; place 1 in the queue." in await look(loop)
    loop.cluster.vanish(address_of(holder))
    assert "at most 2 left on one; team/ahead has 2; place 1" in await look(loop)
    add_node(loop.cluster, "gpu-3", 8)
    assert "the 2 nodes that it may use have 12, at most 8 left on one" in await look(loop)
    for name in ("gpu-1", "gpu-3"):
        loop.cluster.vanish((NODES, "", name))
    assert "and no node that it may use has so many" in await look(loop)


async def test_demands_that_no_label_meets_are_told_likewise() -> None:
    """The scheduler's words are others then, and so is the reason; no node counts as one that may be used."""
    loop = await started()
    await loop.turn()
    (pod,) = loop.cluster.pods()
    words = "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity."
    spec = {**pod["spec"], "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100"}}
    status = {**pod["status"], "conditions": [{**unscheduled(), "message": words}]}
    loop.cluster.update({**pod, "spec": spec, "status": status})
    loop.clock.move(15)
    await loop.turn()
    told = loop.condition("AcceleratorAvailable")
    assert (told["status"], told["reason"]) == ("False", "NoMatchingNode")
    assert "no node that it may use has so many; place 1 in the queue." in told["message"]


async def test_a_replica_that_got_its_devices_says_so() -> None:
    loop = await started()
    await waiting(loop)
    for pod in loop.cluster.pods():
        loop.cluster.update({**pod, "status": {**pod["status"], "conditions": []}})
    await loop.settle()
    await loop.turn()
    assert loop.condition("AcceleratorAvailable")["reason"] == "Allocated"


async def test_waiting_costs_no_writes_while_nothing_changes() -> None:
    loop = await started()
    await waiting(loop)
    await look(loop)
    before = len(loop.cluster.writes)
    for _ in range(10):
        await look(loop)
    assert len(loop.cluster.writes) == before


async def test_nodes_that_went_unnoticed_are_forgotten() -> None:
    """The comparison with the cluster finds what a watch has missed; a list that fails changes nothing."""
    loop = await started()
    devices, cluster = loop.observer.devices, cast("Cluster", loop.cluster)
    loop.lost_events = 2
    loop.cluster.vanish((NODES, "", "gpu-1"))
    add_node(loop.cluster, "gpu-9", 8)
    assert set(devices._nodes) == {"gpu-1", "gpu-2"}
    await devices.fill(cluster)
    assert set(devices._nodes) == {"gpu-2", "gpu-9"}

    def refused(*_: Any, **__: Any) -> Any:
        raise ApiError(403, "Forbidden", "nodes is forbidden")

    loop.cluster.pages = refused  # type: ignore[method-assign]
    await devices.fill(cluster)
    assert set(devices._nodes) == {"gpu-2", "gpu-9"}


async def test_an_older_version_of_a_node_never_replaces_a_newer_one() -> None:
    loop = await started()
    devices = loop.observer.devices
    stale = copy.deepcopy(loop.cluster.objects[NODES, "", "gpu-1"])
    add_node(loop.cluster, "gpu-1", 16)
    devices.notice("MODIFIED", stale)
    assert devices._nodes["gpu-1"][1].devices[GPU] == 16


async def test_nobody_waits_nobody_asks() -> None:
    loop = await started()
    await loop.turn()
    snapshot = await loop.observer.look(KEY)
    assert snapshot is not None
    assert snapshot.standing is None
    assert loop.cluster.all(PODS)
