"""Readiness gates: what the operator has to say before a pod joins the endpoints, and when it takes that back.

A gate is opened for one process: its message begins with the boot id, so that a restarted engine is not taken for the
one that was ready before. A gate that waits is closed for that process; the time of that write is when its wait began.

| the engine says          | gates are               | then                                    |
|--------------------------|-------------------------|-----------------------------------------|
| nothing (unknown)        | any                     | leave them, unless no process is there  |
| no process is there      | open                    | close: Restarted                        |
| not serving, other boot  | open for an older boot  | close: Restarted                        |
| serving                  | not all open for it     | open for this boot what may be open     |
| draining, nobody asked   | any                     | undrain                                 |
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from kvasir_operator.planning.actions import GateState, SetGates, Undrain, Why
from kvasir_operator.planning.state import DRAINING_REASON, Pod
from kvasir_operator.resources import names
from kvasir_runtime.contract.admin_api import AdminState, Phase

_BOOT: Final = "boot "


@dataclass(frozen=True, slots=True)
class Step:
    """Whether a gate may open, as far as it alone is concerned; `due` is when to look again at the latest."""

    done: bool
    reason: str = ""
    note: str = ""
    due: datetime | None = None


@dataclass(frozen=True, slots=True)
class Preparation:
    """What a pod has to have before it takes traffic."""

    adapters: Step = Step(done=True, reason="NothingToLoad")
    warm: Step = Step(done=True, reason="NothingToWarm")


NOTHING_TO_PREPARE: Final = Preparation()


def admit(pod: Pod, preparation: Preparation = NOTHING_TO_PREPARE) -> SetGates | Undrain | None:
    """What a pod that is to serve needs now, by the table above."""
    runtime = pod.runtime
    if not pod.has_process:
        return _close(pod) if _any_open(pod) else None
    if not isinstance(runtime, AdminState):
        return None
    if runtime.draining and runtime.startup.phase in (Phase.SERVING, Phase.DRAINING):
        return Undrain(pod.name, pod.uid, pod.ip, Why.DEMAND_RETURNED)
    if pod.serves_now:
        return _open(pod, runtime.boot_id, preparation)
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


def _open(pod: Pod, boot_id: str, preparation: Preparation) -> SetGates | None:
    """Open what may be open, all in one write where nothing is waited for; None when all is said already."""
    if all(is_open_for(pod, gate, boot_id) for gate in names.GATES):
        return None
    ready = preparation.adapters.done and preparation.warm.done
    steps = {
        names.ADAPTERS_GATE: preparation.adapters,
        names.WARM_GATE: preparation.warm if preparation.adapters.done else WAITS_FOR_ADAPTERS,
        **({names.SERVING_GATE: Step(done=True, reason="Serving")} if ready else {}),
    }
    gates = _news(pod, boot_id, steps)
    return SetGates(pod.name, pod.uid, gates, Why.READY if ready else Why.LOADING) if gates else None


WAITS_FOR_ADAPTERS: Final = Step(done=False, reason="AdaptersLoading")


def _news(pod: Pod, boot_id: str, steps: Mapping[str, Step]) -> dict[str, GateState]:
    """The gates that do not say so yet."""
    return {
        gate: GateState(open=step.done, reason=step.reason, message=_message(boot_id, step.note if step.done else ""))
        for gate, step in steps.items()
        if not is_open_for(pod, gate, boot_id)
        and (step.done or pod.condition(gate).reason != step.reason or waiting_since(pod, gate, boot_id) is None)
    }


def _message(boot_id: str, note: str) -> str:
    return f"{_BOOT}{boot_id}; {note}" if note else f"{_BOOT}{boot_id}"


def waiting_since(pod: Pod, gate: str, boot_id: str) -> datetime | None:
    """Since when a gate is closed because something is waited for in that process; None where it is not."""
    condition = pod.conditions.get(gate)
    waits = condition is not None and condition.status == "False" and _is_about(condition.message, boot_id)
    return condition.since if waits and condition is not None else None


def _close(pod: Pod) -> SetGates:
    closed = GateState(open=False, reason="Restarted", message="the engine's process ended or was replaced")
    return SetGates(pod.name, pod.uid, dict.fromkeys(names.GATES, closed), Why.RESTARTED)


def _any_open(pod: Pod) -> bool:
    return any(pod.condition(gate).holds for gate in names.GATES)


def _open_for_another(pod: Pod, boot_id: str) -> bool:
    return any(pod.condition(gate).holds and not is_open_for(pod, gate, boot_id) for gate in names.GATES)


def is_open_for(pod: Pod, gate: str, boot_id: str) -> bool:
    """Whether a gate was opened for that process."""
    condition = pod.condition(gate)
    return condition.holds and _is_about(condition.message, boot_id)


def _is_about(message: str, boot_id: str) -> bool:
    return message.partition("; ")[0] == _BOOT + boot_id
