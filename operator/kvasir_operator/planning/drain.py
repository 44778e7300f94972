"""How a pod leaves: out of the endpoints, drained, deleted when it is empty or its deadline has come.

| the pod                                        | then                                              |
|------------------------------------------------|---------------------------------------------------|
| never served and holds no request              | delete                                            |
| serves, or served                              | close its serving gate                            |
| gate closed, no process                        | delete: there is nothing to lose                  |
| gate closed longer than the drain timeout      | delete: deadline                                  |
| gate closed, engine unknown                    | wait for it, at most until the deadline           |
| gate closed, may still be among the endpoints  | wait until it has left them                       |
| gate closed, engine takes requests             | drain                                             |
| draining, requests in flight                   | wait, at most until the deadline                  |
| draining, nothing in flight                    | delete                                            |

The time at which the gate was closed is in the cluster, so a new operator goes on where the last one stopped.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from kvasir_operator.planning.actions import DeletePod, Drain, SetGates, Why
from kvasir_operator.planning.gates import shut
from kvasir_operator.planning.state import Pod, Stage, Timings
from kvasir_operator.resources import names
from kvasir_runtime.contract.admin_api import AdminState


@dataclass(frozen=True, slots=True)
class Departure:
    """The next step of a pod that leaves, if there is one now, and when to look again at the latest."""

    action: SetGates | Drain | DeletePod | None = None
    due: datetime | None = None


def dismiss(pod: Pod, why: Why) -> Departure:
    """First step for a pod that has to go: the first two lines of the table above."""
    if pod.stage is Stage.STARTING and not pod.ready and not has_requests(pod):
        return Departure(DeletePod(pod.name, pod.uid, why))
    return Departure(shut(pod, why))


def drain(pod: Pod, timeout_s: float, timings: Timings, now: datetime) -> Departure:
    """Next step for a pod whose serving gate was closed for good: the rest of the table above."""
    since = pod.condition(names.SERVING_GATE).since or pod.created_at
    deadline = since + timedelta(seconds=timeout_s)
    if not pod.has_process:
        return Departure(DeletePod(pod.name, pod.uid, Why.NO_REQUESTS))
    if now >= deadline:
        return Departure(DeletePod(pod.name, pod.uid, Why.DRAIN_DEADLINE))
    if not isinstance(pod.runtime, AdminState):
        return Departure(due=deadline)
    if pod.runtime.draining:
        empty = not has_requests(pod)
        return Departure(DeletePod(pod.name, pod.uid, Why.DRAINED)) if empty else Departure(due=deadline)
    settled = since + timedelta(seconds=timings.endpoint_settle_limit if pod.ready else timings.endpoint_settle)
    if now < settled:
        return Departure(due=min(settled, deadline))
    left = (deadline - now).total_seconds()
    return Departure(Drain(pod.name, pod.uid, pod.ip, left, Why.LEFT_ENDPOINTS), due=deadline)


def has_requests(pod: Pod) -> bool:
    """Whether the engine said that requests are accepted and not finished. Unknown is for the caller to judge."""
    runtime = pod.runtime
    return isinstance(runtime, AdminState) and max(runtime.inflight, runtime.running, runtime.waiting) > 0
