"""GPUs that only the API knows, scheduled for real."""

import json
import time
from typing import Any

from e2e.cluster.conftest import program
from e2e.cluster.layout import Layout
from e2e.cluster.test_pods import box, ready
from e2e.support.kubectl import Kubectl
from e2e.support.waiting import wait_for

TOLERATION = {"key": "kvasir.dev/api-only", "operator": "Exists"}


def gpu_pod(name: str, resource: str, count: int, **spec: Any) -> dict[str, Any]:
    pod = box(name, **spec)
    pod["spec"]["containers"][0]["resources"] = {"limits": {resource: str(count)}}
    return pod


def node_of(space: Kubectl, name: str) -> str:
    return str((space.get("pod", name) or {})["spec"].get("nodeName", ""))


def test_api_only_nodes_take_tolerating_pods_and_stay_ready(space: Kubectl) -> None:
    """The scheduler places by GPU and MIG resources; ordinary pods keep away; the nodes outlive the grace period."""
    program("nodes", "add", "--count", "2", "--gpus", "4")
    program("nodes", "add", "--prefix", "mig", "--gpus", "1", "--mig", "1g.10gb=7")
    try:
        whole = gpu_pod("whole", "nvidia.com/gpu", 3, tolerations=[TOLERATION])
        more = gpu_pod("more", "nvidia.com/gpu", 3, tolerations=[TOLERATION])
        third = gpu_pod("third", "nvidia.com/gpu", 3, tolerations=[TOLERATION])
        slice_pod = gpu_pod("slice", "nvidia.com/mig-1g.10gb", 1, tolerations=[TOLERATION])
        space.apply(whole, more, third, slice_pod, gpu_pod("stranger", "nvidia.com/gpu", 1), box("ordinary"))
        ready(space, "ordinary")
        wait_for("two to be placed", lambda: placed(space) == ["gpu-node-1", "gpu-node-2", "mig-1"], timeout=20)
        assert node_of(space, "stranger") == ""
        time.sleep(45)  # longer than the node controller's 40 s of grace
        assert statuses(space) == {"gpu-node-1": "True", "gpu-node-2": "True", "mig-1": "True"}
    finally:
        program("nodes", "remove")
    assert not statuses(space)


def placed(space: Kubectl) -> list[str]:
    names = ("whole", "more", "third", "slice")
    return sorted(node for name in names if (node := node_of(space, name)))


def statuses(space: Kubectl) -> dict[str, str]:
    nodes = space.list("nodes", "kvasir.dev/api-only=true")
    return {
        node["metadata"]["name"]: condition["status"]
        for node in nodes
        for condition in node["status"]["conditions"]
        if condition["type"] == "Ready"
    }


def test_the_real_node_runs_pods_on_claimed_gpus(space: Kubectl, layout: Layout) -> None:
    """Two claimed GPUs run two pods of one each; a third waits until the claim grows."""
    program("gpus", "2", "--product", "NVIDIA-L4", "--memory", "23034")
    try:
        labels = (space.get("node", layout.node_name) or {})["metadata"]["labels"]
        assert labels["nvidia.com/gpu.product"] == "NVIDIA-L4"
        assert labels["nvidia.com/gpu.family"] == "ada-lovelace"
        space.apply(*(gpu_pod(name, "nvidia.com/gpu", 1) for name in ("one", "two", "three")))
        wait_for("two to run", lambda: sum(bool(node_of(space, n)) for n in ("one", "two", "three")) == 2, timeout=30)
        program("gpus", "3")
        ready(space, "one", "two", "three")
    finally:
        program("gpus", "0")
    node = space.get("node", layout.node_name) or {}
    assert "nvidia.com/gpu" not in json.dumps(node["status"]["capacity"])
    assert "nvidia.com" not in json.dumps(node["metadata"]["labels"])
