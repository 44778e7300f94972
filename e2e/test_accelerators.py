"""Services that want GPUs, placed by the real scheduler on devices that only the API knows.

No engine runs on such devices: what is tested is who gets them, and what the operator says of those that wait.
"""

from pathlib import Path
from typing import Any

import pytest

from e2e.support import files, model_servers, services
from e2e.support.devices import TOLERATION, gpus_of_the_real_node, nodes
from e2e.support.environment import Environment
from e2e.support.kubectl import Kubectl, Object
from e2e.support.waiting import wait_for

MODEL = "https://models.invalid/tiny-llama.tar"
"""An archive: nobody looks into it beforehand, and no volume that a scheduler would look for."""
TOLD_WITHIN = 60.0
"""Seconds: the scheduler tries again every minute at most, the operator looks every half."""


@pytest.fixture
def own(environment: Environment) -> Environment:
    if not environment.own:
        pytest.skip("nodes are added to clusters made here alone")
    return environment


def wants(kubectl: Kubectl, name: str, spec: Object | None = None, **accelerator: Any) -> None:
    """Apply a service that asks for devices and tolerates nodes without a machine."""
    asked: Object = {"accelerator": accelerator, "tolerations": [TOLERATION]}
    kubectl.apply(services.inference_service(name, MODEL, **asked, **(spec or {})))


def told(kubectl: Kubectl, name: str, *words: str) -> str:
    """What AcceleratorAvailable says while it is False, once it says all that."""
    found = services.wait_condition(kubectl, name, "AcceleratorAvailable", "False", *words, timeout=TOLD_WITHIN)
    assert found["reason"] in ("WaitingForGPU", "NoMatchingNode")
    return str(found["message"])


def allocated(kubectl: Kubectl, name: str) -> str:
    """Wait until the service's pod has its devices; returns its node."""
    services.wait_condition(kubectl, name, "AcceleratorAvailable", "True", timeout=TOLD_WITHIN)
    [pod] = services.pods(kubectl, name)
    return str(pod["spec"]["nodeName"])


def vanish(kubectl: Kubectl, name: str) -> None:
    """Delete a service whose pods nobody runs: no kubelet would ever confirm that they have ended."""
    pods = [pod["metadata"]["name"] for pod in services.pods(kubectl, name)]
    kubectl.run("delete", "isvc", name)
    kubectl.run("delete", "pod", *pods, "--grace-period=0", "--force", "--ignore-not-found")
    wait_for("the pods to go", lambda: not kubectl.list("pods", f"{services.SERVICE_LABEL}={name}"), timeout=30)


def test_services_compete_for_the_devices_of_one_node(own: Environment, kubectl: Kubectl) -> None:
    """The first is served; the others say who has the devices and behind whom they wait; then they are served too."""
    space = kubectl.namespace
    pinned: Object = {"products": ["NVIDIA-H200"]}  # no other node has some
    with nodes("race", "--gpus", "4", "--product", "NVIDIA-H200", "--memory", "143771") as node:
        wants(kubectl, "first", count=3, **pinned)
        assert allocated(kubectl, "first") == node
        wants(kubectl, "second", count=2, **pinned)
        told(kubectl, "second", f"{space}/first has 3", "place 1 in the queue")
        wants(kubectl, "third", count=4, **pinned)
        message = told(kubectl, "third", f"place 2 in the queue, after {space}/second")
        assert message.startswith(
            "a replica needs 4 nvidia.com/gpu of one node; the node that it may use has 4, at most 1 left on one; "
            f"{space}/first has 3; place 2 in the queue, after {space}/second."
        )
        vanish(kubectl, "first")
        winner, other = wait_for("one to get the devices", lambda: served_first(kubectl), timeout=TOLD_WITHIN)
        left, has = (2, 2) if winner == "second" else (0, 4)
        told(kubectl, other, f"at most {left} left on one; {space}/{winner} has {has}; place 1 in the queue")
        vanish(kubectl, winner)
        assert allocated(kubectl, other) == node


def served_first(kubectl: Kubectl) -> tuple[str, str] | None:
    """Who got devices, and who did not: the scheduler lets pods that failed more often wait longer."""
    names = ["second", "third"]
    placed = [name for name in names if any(pod["spec"].get("nodeName") for pod in services.pods(kubectl, name))]
    return (placed[0], next(name for name in names if name != placed[0])) if placed else None


def test_products_memory_and_slices_choose_the_node(own: Environment, kubectl: Kubectl) -> None:
    """By the labels of GPU feature discovery; what no node has waits, and says that none has it."""
    with (
        nodes("pick-l4", "--gpus", "2", "--product", "NVIDIA-L4", "--memory", "23034") as small,
        nodes("pick-h100", "--gpus", "2", "--product", "NVIDIA-H100-80GB-HBM3", "--memory", "81559") as large,
        nodes("pick-mig", "--gpus", "1", "--mig", "1g.10gb=7") as sliced,
    ):
        wants(kubectl, "small", products=["L4"])
        wants(kubectl, "large", minMemory="40Gi", products=["H100-80GB-HBM3"])
        wants(kubectl, "sliced", mig="1g.10gb")
        wants(kubectl, "huge", minMemory="200Gi")
        assert [allocated(kubectl, name) for name in ("small", "large", "sliced")] == [small, large, sliced]
        told(kubectl, "huge", "a replica needs 1 nvidia.com/gpu of one node, and no node that it may use has so many")


def test_a_service_that_waits_gets_devices_that_appear(own: Environment, kubectl: Kubectl) -> None:
    """On the real node, whose kubelet does not know of them."""
    wants(kubectl, "late", products=["L4"])
    told(kubectl, "late", "no node that it may use has so many", "place 1 in the queue")
    with gpus_of_the_real_node(1):
        allocated(kubectl, "late")
        wants(kubectl, "later", products=["L4"])
        told(kubectl, "later", f"has 1, at most 0 left on one; {kubectl.namespace}/late has 1; place 1 in the queue")
        kubectl.run("delete", "isvc", "late")
        allocated(kubectl, "later")
        kubectl.run("delete", "isvc", "later")
        wait_for("the pods to end", lambda: not kubectl.list("pods"), timeout=60)


def test_a_higher_priority_takes_what_a_lower_one_has_above_its_floor(own: Environment, kubectl: Kubectl) -> None:
    """Two replicas hold the two devices of the real node; one of them gives way, the other stays."""
    space = kubectl.namespace
    elastic: Object = {"replicas": 2, "scaling": {"minReplicas": 1, "maxReplicas": 2}}
    with gpus_of_the_real_node(2):
        wants(kubectl, "batch", elastic, products=["L4"])
        wait_for("both to have a device", lambda: placed(kubectl, "batch") == 2, timeout=TOLD_WITHIN)
        wants(kubectl, "equal", products=["L4"])
        told(kubectl, "equal", f"{space}/batch has 2", "place 1 in the queue")
        wants(kubectl, "chat", {"priority": 10}, products=["L4"])
        allocated(kubectl, "chat")
        assert placed(kubectl, "batch") == 1
        assert placed(kubectl, "equal") == 0, "what was freed is kept for the one that it was freed for"
        told(kubectl, "batch", f"{space}/chat has 1")
        events = kubectl.list("events")
        assert any("a service of a higher priority needs its devices" in event["message"] for event in events)
        kubectl.run("delete", "isvc", "chat", "equal")
        wait_for("both to have a device again", lambda: placed(kubectl, "batch") == 2, timeout=TOLD_WITHIN)
        kubectl.run("delete", "isvc", "batch")
        wait_for("the pods to end", lambda: not kubectl.list("pods"), timeout=60)


def test_services_of_a_group_start_together_or_not_at_all(own: Environment, kubectl: Kubectl) -> None:
    """Either would fit alone on what is left; neither gets anything until both fit at once."""
    both: Object = {"group": {"name": "assistant", "services": 2}}
    pinned: Object = {"products": ["NVIDIA-H200"]}
    with nodes("group", "--gpus", "4", "--product", "NVIDIA-H200", "--memory", "143771") as node:
        wants(kubectl, "other", count=2, **pinned)
        assert allocated(kubectl, "other") == node
        wants(kubectl, "chat", both, count=2, **pinned)
        told(kubectl, "chat", "group assistant has 1 of its 2 services", "at most 2 left on one")
        wants(kubectl, "embed", both, count=1, **pinned)
        told(kubectl, "chat", f"group assistant starts when all of its services can: not yet {kubectl.namespace}/embed")
        told(kubectl, "embed", f"not yet {kubectl.namespace}/embed")
        assert services.pods(kubectl, "chat") == services.pods(kubectl, "embed") == []
        vanish(kubectl, "other")
        assert [allocated(kubectl, name) for name in ("chat", "embed")] == [node, node]
        for name in ("chat", "embed"):
            vanish(kubectl, name)


def placed(kubectl: Kubectl, name: str) -> int:
    return sum(bool(pod["spec"].get("nodeName")) for pod in services.pods(kubectl, name))


def test_the_cheapest_product_that_holds_the_model_is_taken(own: Environment, kubectl: Kubectl, tmp_path: Path) -> None:
    """A model of 54 GB goes past the smaller product; what fits on none is refused, with the numbers and what would."""
    for name in files.CONFIGS:
        files.write_model(tmp_path / "models", name)
    address = model_servers.address_for_pods(kubectl)
    with (
        model_servers.https(tmp_path / "models", address, tmp_path) as (base, certificate),
        nodes("cheap-l4", "--gpus", "2", "--product", "NVIDIA-L4", "--memory", "23034"),
        nodes("cheap-a100", "--gpus", "1", "--product", "NVIDIA-A100-SXM4-80GB", "--memory", "81920") as fits,
    ):
        kubectl.apply(model_servers.secret_of(certificate))
        for name in ("gemma-2-27b", "llama-3.1-70b"):
            source = {"uri": f"{base}/{name}", "secretName": "models"}
            model = {"model": {"source": source, "maxModelLen": 4096}, "engine": {}}
            wants(kubectl, name.replace(".", "-"), model)
        assert allocated(kubectl, "gemma-2-27b") == fits
        [pod] = services.pods(kubectl, "gemma-2-27b")
        assert pod["metadata"]["annotations"]["kvasir.dev/products"] == "NVIDIA-A100-SXM4-80GB"
        planned = services.status(kubectl, "gemma-2-27b")["capacity"]
        assert planned["source"] == "planned"
        assert 54e9 < planned["weights"] < 56e9
        refused = services.wait_condition(
            kubectl, "llama-3-1-70b", "CapacityFits", "False", "weights (131Gi)", timeout=TOLD_WITHIN
        )
        assert refused["reason"] == "OutOfMemoryWeights"
        assert "a device with memory of at least" in refused["message"]
        assert services.pods(kubectl, "llama-3-1-70b") == []
        vanish(kubectl, "gemma-2-27b")
