"""Failures that are made to happen: each is told with its cause, its remedy and an Event, once and without flapping."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from e2e.support import services
from e2e.support.devices import TOLERATION, gpus_of_the_real_node, nodes, silenced
from e2e.support.environment import Environment
from e2e.support.kubectl import Kubectl, Object
from e2e.support.waiting import wait_for


@pytest.fixture(autouse=True)
def own_cluster(environment: Environment) -> None:
    if not environment.own:
        pytest.skip("needs the node to be this machine")


def failure(kubectl: Kubectl, cause: str, *, timeout: float) -> Object:
    """`status.lastFailure` once it has that cause, and is told by an Event."""

    def look() -> Object | None:
        found: Object = services.status(kubectl, "broken").get("lastFailure") or {}
        return found if found.get("cause") == cause else None

    try:
        found = wait_for(f"a failure by {cause}", look, timeout=timeout)
    except TimeoutError as error:
        raise TimeoutError(f"{error}; status: {services.status(kubectl, 'broken')}") from None
    assert found["message"]
    assert found["remedy"]
    wait_for("an Event", lambda: [each for each in kubectl.list("events") if each["reason"] == cause], timeout=10)
    return found


def degraded(kubectl: Kubectl) -> Object:
    return services.condition(kubectl.get("isvc", "broken"), "Degraded")


def test_an_unsupported_architecture(kubectl: Kubectl, tmp_path: Path) -> None:
    model = shutil.copytree(services.TINY_LLAMA, tmp_path / "mamba")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(
        json.dumps(config | {"architectures": ["MambaForCausalLM"], "model_type": "mamba"})
    )
    kubectl.apply(services.inference_service("broken", services.put_model_on_node("mamba", model)))
    assert "MambaForCausalLM" in failure(kubectl, "ModelUnsupported", timeout=60)["message"]
    told = services.condition(kubectl.get("isvc", "broken"), "ModelAvailable")
    assert (told["status"], told["reason"]) == ("False", "ModelUnsupported")


def test_a_device_that_the_engine_cannot_use(kubectl: Kubectl, model_uri: str) -> None:
    """The scheduler gives a device of which the node knows nothing; the engine, which must not fall back, says so."""
    with gpus_of_the_real_node(1):
        kubectl.apply(services.inference_service("broken", model_uri, accelerator={"products": ["L4"]}))
        assert "torch finds no GPU" in failure(kubectl, "AcceleratorError", timeout=90)["message"]
        kubectl.run("delete", "isvc", "broken")
        wait_for("the pods to end", lambda: not kubectl.list("pods"), timeout=60)


def test_a_crash_loop_is_told_once_and_does_not_flap(kubectl: Kubectl) -> None:
    """Between two attempts of the kubelet the cause stays, with the time of its first appearance."""
    env: Any = [{"name": "PYTHONHOME", "value": "/nonexistent"}]
    # A model of its own: that it could not be looked at counts for ten minutes, for all services that name it.
    service = services.inference_service("broken", services.put_model_on_node("tiny-llama-of-a-crash-loop"))
    service["spec"]["engine"]["env"] = env
    kubectl.apply(service)
    assert "exit code 1" in failure(kubectl, "CrashLoop", timeout=60)["message"]
    first = degraded(kubectl)
    [pod] = services.pods(kubectl, "broken")
    wait_for("three attempts", lambda: restarts(kubectl) >= 2, timeout=120)
    now = degraded(kubectl)
    assert (now["status"], now["reason"], now["lastTransitionTime"]) == (
        "True", "CrashLoop", first["lastTransitionTime"],
    )  # fmt: skip
    assert [each["metadata"]["uid"] for each in services.pods(kubectl, "broken")] == [pod["metadata"]["uid"]]
    [event] = [each for each in kubectl.list("events") if each["reason"] == "CrashLoop"]
    assert event["type"] == "Warning"


def restarts(kubectl: Kubectl) -> int:
    found = [(pod.get("status") or {}).get("containerStatuses") or [] for pod in services.pods(kubectl, "broken")]
    return max((each["restartCount"] for statuses in found for each in statuses), default=0)


def test_memory_that_runs_out_at_run_time(kubectl: Kubectl, model_uri: str) -> None:
    """Files in /dev/shm count as memory of the container: the kernel kills the engine when they fill its limit."""
    service = services.inference_service("broken", model_uri)
    service["spec"]["resources"] = {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "1Gi"}}
    kubectl.apply(service)
    services.wait_ready(kubectl, "broken")
    [pod] = services.pods(kubectl, "broken")
    fill = ["dd", "if=/dev/zero", "of=/dev/shm/filler", "bs=1M", "count=1000"]
    with kubectl.background("exec", pod["metadata"]["name"], "-c", "runtime", "--", *fill):
        found = failure(kubectl, "OOMKilled", timeout=90)
    assert "more memory than its limit" in found["message"]
    told = services.condition(kubectl.get("isvc", "broken"), "CapacityFits")
    assert (told["status"], told["reason"]) == ("False", "OOMKilled")


def test_an_engine_that_does_not_answer_its_probes(kubectl: Kubectl, model_uri: str) -> None:
    """Stopped, not dead: the kubelet's probes fail, it is started anew, and serves again."""
    kubectl.apply(services.inference_service("broken", model_uri, drain={"timeout": "2s"}))
    services.wait_ready(kubectl, "broken")
    [pod] = services.pods(kubectl, "broken")
    stopped = sorted(services.processes_of(pod))
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    assert "probe failed" in failure(kubectl, "ProbeFailed", timeout=150)["message"]
    services.wait_ready(kubectl, "broken", timeout=90)


def test_a_node_that_falls_silent(kubectl: Kubectl) -> None:
    """Its pods are given up by Kubernetes and replaced; meanwhile the service says where they are."""
    eviction = {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"}
    spec: Object = {
        "accelerator": {"products": ["NVIDIA-H200"]},
        "tolerations": [TOLERATION, {**eviction, "tolerationSeconds": 15}],
    }
    with nodes("lost", "--gpus", "1", "--product", "NVIDIA-H200", "--memory", "143771") as node:
        kubectl.apply(services.inference_service("broken", "https://models.invalid/m.tar", **spec))
        wait_for("a node", lambda: on_node(kubectl) == [node], timeout=30)
        [before] = services.pods(kubectl, "broken")
        with silenced(kubectl, node):
            assert f"node {node} does not report" in failure(kubectl, "NodeLost", timeout=90)["message"]
            wait_for("a replacement", lambda: replaced(kubectl, before), timeout=60)
        kubectl.run("delete", "isvc", "broken")
        gone = [pod["metadata"]["name"] for pod in kubectl.list("pods")]
        kubectl.run("delete", "pod", *gone, "--grace-period=0", "--force", "--ignore-not-found")


def on_node(kubectl: Kubectl) -> list[str]:
    return [pod["spec"].get("nodeName", "") for pod in services.pods(kubectl, "broken")]


def replaced(kubectl: Kubectl, before: Object) -> bool:
    return any(pod["metadata"]["uid"] != before["metadata"]["uid"] for pod in services.pods(kubectl, "broken"))
