"""How replicas leave while they answer: a drain that is called off, a pod and a service that are deleted."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import openai
import pytest

from e2e.support import services, traffic
from e2e.support.environment import Environment
from e2e.support.kubectl import Kubectl, Object
from e2e.support.waiting import wait_for
from kvasir_runtime.contract import metric_names

LONG_ANSWER = 900
"""Tokens: seconds of work on a machine of two cores, of the 1024 that the model takes."""


@pytest.fixture(autouse=True)
def own_cluster(environment: Environment) -> None:
    if not environment.own:
        pytest.skip("asks pods at their own addresses")


def pod_url(pod: Object) -> str:
    return f"http://{pod['status']['podIP']}:8000"


def is_draining(pod: Object) -> bool:
    """Whether the engine itself says that it takes no new work."""
    lines = httpx.get(f"{pod_url(pod)}/metrics", timeout=60).text.splitlines()
    return any(line.startswith(metric_names.DRAINING + "{") and line.endswith(" 1.0") for line in lines)


@contextmanager
def long_answers(pod: Object, count: int) -> Iterator[list[str]]:
    """Stream long answers from one pod beside the block; yields what was wrong with each, filled when it has ended."""
    problems: list[str] = []

    def ask() -> None:
        with openai.OpenAI(base_url=f"{pod_url(pod)}/v1", api_key="none", max_retries=0, timeout=120) as client:
            problems.append(traffic.ask_once(client, "tiny", "def add(", LONG_ANSWER)[1])

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        wait_for("the answers to begin", lambda: running(pod) == count, timeout=30, every=0.05)
        yield problems
    finally:
        for thread in threads:
            thread.join(timeout=120)


def running(pod: Object) -> float:
    lines = httpx.get(f"{pod_url(pod)}/metrics", timeout=60).text.splitlines()
    found = (line for line in lines if line.startswith(metric_names.NUM_REQUESTS_RUNNING + "{"))
    return sum(float(line.rpartition(" ")[2]) for line in found)


def started(kubectl: Kubectl, model_uri: str, replicas: int) -> list[Object]:
    """The pods of a service that serves."""
    kubectl.apply(services.inference_service("tiny", model_uri, replicas=replicas))
    services.wait_ready(kubectl, "tiny", replicas=replicas)
    return services.pods(kubectl, "tiny")


def uids(pods: list[Object]) -> set[str]:
    return {pod["metadata"]["uid"] for pod in pods}


def gone(kubectl: Kubectl, pod: Object) -> Callable[[], bool]:
    return lambda: pod["metadata"]["uid"] not in uids(kubectl.list("pods"))


def test_a_drain_that_is_called_off_serves_again(environment: Environment, kubectl: Kubectl, model_uri: str) -> None:
    """Scaled down and, while the replica finishes its answers, up again: the same pods serve, nothing was lost."""
    before = started(kubectl, model_uri, 2)
    with services.endpoint(environment, kubectl, "tiny") as base:
        with traffic.steady(base, "tiny", clients=16, max_tokens=LONG_ANSWER, prompt="def add(") as seen:
            wait_for("both to work", lambda: all(running(pod) > 1 for pod in before), timeout=60)
            kubectl.run("scale", "isvc/tiny", "--replicas=1")
            drained = wait_for(
                "one to drain", lambda: [pod for pod in before if is_draining(pod)], timeout=30, every=0.05
            )
            kubectl.run("scale", "isvc/tiny", "--replicas=2")
            services.wait_ready(kubectl, "tiny", replicas=2)
            assert not is_draining(drained[0])
        assert seen.failures == []
        wait_for("it to be asked again", lambda: asks(base, drained[0]), timeout=30)
    assert uids(services.pods(kubectl, "tiny")) == uids(before)
    assert "DrainCancelled" in {event["reason"] for event in kubectl.list("events")}


def asks(base: str, pod: Object) -> bool:
    """Whether a request to the service reaches the pod."""

    def answered() -> float:
        lines = httpx.get(f"{pod_url(pod)}/metrics", timeout=60).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("vllm:request_success_total{"))

    before = answered()
    for _ in range(8):
        httpx.post(f"{base}/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 1}, timeout=60)
    return answered() > before


def test_a_pod_that_is_deleted_finishes_its_answers(environment: Environment, kubectl: Kubectl, model_uri: str) -> None:
    """By anybody, and while the operator does nothing about it but to replace it."""
    victim, _ = started(kubectl, model_uri, 2)
    with (
        services.endpoint(environment, kubectl, "tiny") as base,
        traffic.steady(base, "tiny") as seen,
        long_answers(victim, 4) as problems,
    ):
        kubectl.run("delete", "pod", victim["metadata"]["name"], "--wait=false")
        wait_for("it to go", gone(kubectl, victim), timeout=90)
    services.wait_ready(kubectl, "tiny", replicas=2)
    assert problems == [""] * 4
    assert seen.failures == []


def test_a_service_that_is_deleted_finishes_its_answers(kubectl: Kubectl, model_uri: str) -> None:
    """All of its pods drain by themselves, within `drain.timeout`."""
    [pod] = started(kubectl, model_uri, 1)
    with long_answers(pod, 4) as problems:
        kubectl.run("delete", "isvc", "tiny", "--wait=false")
        wait_for("the pod to go", gone(kubectl, pod), timeout=90)
    assert problems == [""] * 4
