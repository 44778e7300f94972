"""Readiness gates: what the operator has to say before a pod joins the endpoints, and when it takes that back.

A gate is opened for one process: its message names the boot id, so that a restarted engine is not taken for the one
that was ready before.

| the engine says          | gates are               | then                                    |
|--------------------------|-------------------------|-----------------------------------------|
| nothing (unknown)        | any                     | leave them, unless no process is there  |
| no process is there      | open                    | close: Restarted                        |
| not serving, other boot  | open for an older boot  | close: Restarted                        |
| serving                  | not all open for it     | open for this boot                      |
| draining, nobody asked   | any                     | undrain                                 |
"""

from typing import Final

from kvasir_operator.planning.actions import GateState, SetGates, Undrain, Why
from kvasir_operator.planning.state import DRAINING_REASON, Pod
from kvasir_operator.resources import names
from kvasir_runtime.contract.admin_api import AdminState, Phase

_BOOT: Final = "boot "


def admit(pod: Pod) -> SetGates | Undrain | None:
    """What a pod that is to serve needs now, by the table above."""
    runtime = pod.runtime
    if not pod.has_process:
        return _close(pod) if _any_open(pod) else None
    if not isinstance(runtime, AdminState):
        return None
    if runtime.draining and runtime.startup.phase in (Phase.SERVING, Phase.DRAINING):
        return Undrain(pod.name, pod.uid, pod.ip, Why.DEMAND_RETURNED)
    if pod.serves_now:
        return None if _all_open_for(pod, runtime.boot_id) else _open(pod, runtime.boot_id)
    return _close(pod) if _open_for_another(pod, runtime.boot_id) else None


def shut(pod: Pod, why: Why) -> SetGates:
    """Take the pod out of the endpoints to drain it; the time of this write starts its deadline."""
    gate = GateState(open=False, reason=DRAINING_REASON, message=_REASONS.get(why, str(why)))
    return SetGates(pod.name, pod.uid, {names.SERVING_GATE: gate}, why)


_REASONS: Final = {
    Why.SCALE_DOWN: "fewer replicas are wanted",
    Why.PREEMPTED: "a service of a higher priority needs its devices",
    Why.ROLLOUT: "a newer revision takes its place",
    Why.ROLLBACK: "an earlier revision takes its place",
    Why.NODE_DRAIN: "its node is being drained",
}


def _open(pod: Pod, boot_id: str) -> SetGates:
    gates = {
        names.ADAPTERS_GATE: GateState(open=True, reason="NothingToLoad", message=_BOOT + boot_id),
        names.WARM_GATE: GateState(open=True, reason="NothingToWarm", message=_BOOT + boot_id),
        names.SERVING_GATE: GateState(open=True, reason="Serving", message=_BOOT + boot_id),
    }
    return SetGates(pod.name, pod.uid, gates, Why.READY)


def _close(pod: Pod) -> SetGates:
    closed = GateState(open=False, reason="Restarted", message="the engine's process ended or was replaced")
    return SetGates(pod.name, pod.uid, dict.fromkeys(names.GATES, closed), Why.RESTARTED)


def _any_open(pod: Pod) -> bool:
    return any(pod.condition(gate).holds for gate in names.GATES)


def _all_open_for(pod: Pod, boot_id: str) -> bool:
    return all(_is_open_for(pod, gate, boot_id) for gate in names.GATES)


def _open_for_another(pod: Pod, boot_id: str) -> bool:
    return any(pod.condition(gate).holds and not _is_open_for(pod, gate, boot_id) for gate in names.GATES)


def _is_open_for(pod: Pod, gate: str, boot_id: str) -> bool:
    condition = pod.condition(gate)
    return condition.holds and condition.message == _BOOT + boot_id
