"""Two operators of which one acts: fail-over, restarts in the middle of work, and one that was stopped for a minute."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from e2e.support import audit, operator, services
from e2e.support.environment import Environment
from e2e.support.kubectl import Kubectl, Object
from e2e.support.waiting import wait_for
from kvasir_operator.resources import names

FAIL_OVER = 20.0
"""Seconds within which another operator acts, counted from the moment at which the leader falls silent."""
STOPPED = 60.0
"""Seconds for which a leader is stopped: four times as long as its Lease lasts."""


@pytest.fixture
def pair(environment: Environment) -> Iterator[Kubectl]:
    """Two operators, which the kubelet leaves alone while they are stopped; one as before afterwards."""
    if not environment.own:
        pytest.skip("operators are stopped by signals from their node, which must be this machine")
    system = environment.kubectl.within(operator.NAMESPACE)
    patience = [{"op": "add", "path": "/spec/template/spec/containers/0/livenessProbe/failureThreshold", "value": 60}]
    system.run("patch", "deployment", operator.DEPLOYMENT, "--type=json", "-p", yaml.safe_dump(patience))
    operator.scale(environment.kubectl, 2)
    try:
        wait_for("two operators, one of them leading", lambda: len(ready(system)) == 2 and leader(system), timeout=60)
        yield system
    finally:
        system.run("rollout", "undo", f"deployment/{operator.DEPLOYMENT}")
        operator.scale(environment.kubectl, 1)
        wait_for("one operator", lambda: len(staying(system)) == 1, timeout=60)


def staying(system: Kubectl) -> list[Object]:
    """Operators that nobody has deleted. The kubelet may take a minute to let go of the others, which have ended."""
    return [pod for pod in operator.pods(system) if "deletionTimestamp" not in pod["metadata"]]


def ready(system: Kubectl) -> list[Object]:
    return [pod for pod in operator.pods(system) if services.is_ready(pod)]


def leader(system: Kubectl) -> Object | None:
    """The pod that holds the Lease, if there is one."""
    lease = system.get("lease", "kvasir-operator")
    holder = lease["spec"].get("holderIdentity") if lease else None
    return next((pod for pod in operator.pods(system) if pod["metadata"]["name"] == holder), None)


def the_leader(system: Kubectl) -> Object:
    return wait_for("a leader", lambda: leader(system), timeout=60)


@contextmanager
def stopped(pod: Object) -> Iterator[None]:
    """All processes of a pod, stopped as a machine that is suspended stops them."""
    processes = services.processes_of(pod)
    assert processes, "the operator has a process"
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            os.kill(process, signal.SIGCONT)


def replicas_of(service: str, kubectl: Kubectl) -> int:
    """Pods that are to serve; those that look at a model are none."""
    pods = services.pods(kubectl, service)
    return sum(pod["metadata"]["labels"][names.COMPONENT_LABEL] == names.RUNTIME_COMPONENT for pod in pods)


def acted_on(service: str, kubectl: Kubectl) -> bool:
    """Whether an operator has begun; a replica comes later, when the model was looked at."""
    return kubectl.get("service", service) is not None


def pending(name: str, uri: str) -> Object:
    """A service whose pods ask for more than there is: their number is all that matters."""
    resources = {"requests": {"cpu": "900", "memory": "512Mi"}, "limits": {"memory": "1536Mi"}}
    return services.inference_service(name, uri, resources=resources)


def test_another_operator_acts_when_the_leader_is_killed(pair: Kubectl, kubectl: Kubectl, model_uri: str) -> None:
    """`kill -9` of the leader, whose pod is deleted: a service that is made then is acted on within 20 s."""
    first = the_leader(pair)
    for process in services.processes_of(first):
        os.kill(process, signal.SIGKILL)
    began = time.monotonic()
    pair.run("delete", "pod", first["metadata"]["name"], "--grace-period=0", "--force", "--wait=false")
    kubectl.apply(pending("later", model_uri))
    wait_for("something of the service to be made", lambda: acted_on("later", kubectl), timeout=90, every=0.1)
    took = time.monotonic() - began
    wait_for("a pod of the service", lambda: replicas_of("later", kubectl) == 1, timeout=60)
    assert the_leader(pair)["metadata"]["uid"] != first["metadata"]["uid"]
    print(f"fail-over after the leader was killed: {took:.1f} s")
    assert took < FAIL_OVER


def test_an_operator_that_lets_go_is_followed_at_once(pair: Kubectl, kubectl: Kubectl, model_uri: str) -> None:
    """A leader that is asked to end releases the Lease: the next need not wait for it to expire."""
    first = the_leader(pair)
    began = time.monotonic()
    pair.run("delete", "pod", first["metadata"]["name"], "--wait=false")
    kubectl.apply(pending("later", model_uri))
    wait_for("something of the service to be made", lambda: acted_on("later", kubectl), timeout=60, every=0.1)
    took = time.monotonic() - began
    print(f"fail-over after the leader was asked to end: {took:.1f} s")
    assert took < 10


def test_a_leader_that_was_stopped_writes_nothing_when_it_wakes(
    pair: Kubectl, kubectl: Kubectl, model_uri: str
) -> None:
    """Stopped for a minute while another takes over, it wakes with old knowledge and work at hand, and does none of it.

    The API server's audit log is the witness: not one write comes from its address after it was stopped.
    """
    kubectl.apply(pending("kept", model_uri), pending("deleted", model_uri))
    wait_for("pods", lambda: replicas_of("kept", kubectl) == replicas_of("deleted", kubectl) == 1, timeout=60)
    first = the_leader(pair)
    address = first["status"]["podIP"]
    with stopped(first):
        began, at = time.monotonic(), datetime.now(UTC)
        kubectl.run("scale", "isvc/kept", "--replicas=3")  # reaches both: one of them must not act on it when it wakes
        wait_for("the other operator to act", lambda: replicas_of("kept", kubectl) == 3, timeout=60, every=0.1)
        took = time.monotonic() - began
        kubectl.run("delete", "isvc/deleted", "--wait=false")
        kubectl.run("scale", "isvc/kept", "--replicas=2")
        wait_for("pods to go", lambda: replicas_of("kept", kubectl) == 2, timeout=60)
        wait_for("a minute", lambda: time.monotonic() - began >= STOPPED, timeout=STOPPED + 10, every=0.5)
        second = the_leader(pair)
    print(f"fail-over after the leader was stopped: {took:.1f} s")
    uid = first["metadata"]["uid"]
    wait_for("the woken one to give up and start anew", lambda: started_anew(pair, uid), timeout=60)
    assert writes_from(address, at) == []
    assert the_leader(pair)["metadata"]["uid"] == second["metadata"]["uid"] != uid
    assert replicas_of("kept", kubectl) == 2
    assert replicas_of("deleted", kubectl) == 0
    assert "Lease" in pair.run("logs", first["metadata"]["name"], "--previous", "--tail=20")
    assert took < FAIL_OVER


def started_anew(system: Kubectl, uid: str) -> bool:
    """Whether the operator's container was started again, in the same pod."""
    [pod] = [each for each in operator.pods(system) if each["metadata"]["uid"] == uid]
    return any(each["restartCount"] and each["ready"] for each in pod["status"]["containerStatuses"])


def writes_from(address: str, since: datetime) -> list[str]:
    """What was written from an address; the clocks are those of one machine, a second is for rounding."""
    late = since + timedelta(seconds=1)
    found = (each for each in audit.requests(audit.log_file()) if each.source == address and each.received >= late)
    return [f"{each.received} {each.verb} {each.resource} {each.name}: {each.code}" for each in found if each.is_write]


def test_half_done_work_is_finished_by_the_next_operator(
    environment: Environment, kubectl: Kubectl, model_uri: str
) -> None:
    """Killed again and again while it scales and drains: the service ends as the spec says, without orphans."""
    kubectl.apply(services.inference_service("tiny", model_uri, drain={"timeout": "20s"}))
    services.wait_ready(kubectl, "tiny")
    for replicas in (3, 1, 2):
        kubectl.run("scale", "isvc/tiny", f"--replicas={replicas}")
        time.sleep(0.4)  # the kill comes in the middle of the work, wherever that is
        for pod in operator.pods(environment.kubectl):
            for process in services.processes_of(pod):
                os.kill(process, signal.SIGKILL)
    services.wait_ready(kubectl, "tiny", replicas=2, timeout=180)
    pods = services.pods(kubectl, "tiny")
    assert len(pods) == 2, "none too many"
    assert {pod["metadata"]["ownerReferences"][0]["name"] for pod in pods} == {"tiny"}
