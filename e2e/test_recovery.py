"""What dies comes back."""

import os
import signal
from collections.abc import Callable

from e2e.support import services
from e2e.support.kubectl import Kubectl, Object
from e2e.support.waiting import wait_for


def test_a_killed_pod_is_replaced(shared: Kubectl, model_uri: str) -> None:
    """A pod that vanishes without notice is made anew, and the service says how it stands meanwhile."""
    shared.apply(services.inference_service("tiny", model_uri))
    services.wait_ready(shared, "tiny")
    [before] = services.pods(shared, "tiny")
    shared.run("delete", "pod", before["metadata"]["name"], "--grace-period=0", "--force")

    def replaced() -> Object | None:
        now = services.pods(shared, "tiny")
        fresh = [pod for pod in now if pod["metadata"]["uid"] != before["metadata"]["uid"]]
        return fresh[0] if fresh and services.is_ready(fresh[0]) else None

    wait_for("another pod, ready", replaced, timeout=90)
    services.wait_ready(shared, "tiny")


def test_every_runtime_process_may_be_killed(shared: Kubectl, model_uri: str) -> None:
    """`kill -9` of each process of the runtime in turn ends in a service that is Ready again."""
    shared.apply(services.inference_service("tiny", model_uri))
    services.wait_ready(shared, "tiny")
    count = len(services.processes_of(pod(shared)))
    assert count >= 2, "front end and engine are processes of their own"
    for position in range(count):
        before = pod(shared)
        running = services.processes_of(before)
        victim = sorted(running)[min(position, len(running) - 1)]
        os.kill(victim, signal.SIGKILL)
        wait_for(f"a restart after the end of {running[victim]!r}", restarted(shared, before), timeout=60)
        services.wait_ready(shared, "tiny", timeout=150)


def pod(kubectl: Kubectl) -> Object:
    [found] = services.pods(kubectl, "tiny")
    return found


def restarted(kubectl: Kubectl, before: Object) -> Callable[[], bool]:
    """Whether the pod's container has been started again, or another pod has taken its place."""

    def look() -> bool:
        now = services.pods(kubectl, "tiny")
        same = [each for each in now if each["metadata"]["uid"] == before["metadata"]["uid"]]
        return not same or restarts(same[0]) > restarts(before)

    return look


def restarts(pod: Object) -> int:
    return sum(int(each["restartCount"]) for each in (pod.get("status") or {}).get("containerStatuses") or [])
