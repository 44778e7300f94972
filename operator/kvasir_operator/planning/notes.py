"""Kubernetes Events about a service: what was done, and what became of it. Few, and worth reading."""

from collections.abc import Iterable, Sequence
from typing import Final

from kvasir_operator.api.conditions import Condition, ConditionType, Reason, find_condition
from kvasir_operator.api.v1alpha1 import InferenceServiceStatus, LastFailure
from kvasir_operator.planning.actions import Action, CreatePod, DeletePod, Note, SetGates, Undrain, Why


def notes_on_actions(done: Sequence[Action], before: InferenceServiceStatus, wanted: int) -> list[Note]:
    """What was done, one Event for pods that share a reason. `before` is the status before it was done."""
    created = [each for each in done if isinstance(each, CreatePod)]
    return [
        *_scaled_up([each for each in created if each.why is Why.SCALE_UP], _present(before), wanted),
        *(Note("Replaced", _replaced(each)) for each in created if each.why is Why.REPLACE),
        *(note for each in done if (note := _left(each)) is not None),
    ]


def _present(before: InferenceServiceStatus) -> int:
    """Replicas that were wanted and there before."""
    wanted = before.desired_replicas or 0
    return wanted if before.replicas is None else min(wanted, before.replicas)


def _scaled_up(created: Sequence[CreatePod], before: int, wanted: int) -> Iterable[Note]:
    if created:
        pods = ", ".join(each.pod for each in created)
        yield Note("ScaledUp", f"from {before} to {wanted} replicas: created {pods}")


def _replaced(action: CreatePod) -> str:
    return f"created {action.pod} in place of {action.replaces or 'one that is gone'}"


def _left(action: Action) -> Note | None:
    """One pod's way out, or back."""
    match action:
        case SetGates(why=Why.SCALE_DOWN | Why.ROLLOUT | Why.ROLLBACK | Why.NODE_DRAIN | Why.PREEMPTED):
            return Note("Draining", f"{action.pod} leaves the endpoints: {_LEAVING[action.why]}")
        case Undrain():
            return Note("DrainCancelled", f"{action.pod} is needed again")
        case DeletePod(why=Why.INSPECTED):
            return None
        case DeletePod(why=Why.DRAIN_DEADLINE):
            return Note("DrainDeadline", f"deleted {action.pod}, whose requests outlasted drain.timeout", warning=True)
        case DeletePod():
            return Note("Removed", f"deleted {action.pod}: {_LEAVING[action.why]}")
        case _:
            return None


_LEAVING: Final = {
    Why.SCALE_DOWN: "fewer replicas are wanted",
    Why.PREEMPTED: "a service of a higher priority needs its devices",
    Why.HELD_BACK: "a service of a higher priority is served first",
    Why.MISPLACED: "another product has room for it",
    Why.GROUP_WAITS: "its group waits for another service",
    Why.ROLLOUT: "a newer revision takes its place",
    Why.ROLLBACK: "an earlier revision takes its place",
    Why.NODE_DRAIN: "its node is being drained",
    Why.REPLACE: "it had ended",
    Why.DRAINED: "all its requests are finished",
    Why.NO_REQUESTS: "it has no running engine",
}


def _on_adapters(before: InferenceServiceStatus, after: InferenceServiceStatus) -> Iterable[Note]:
    """Adapters that begin to fail, one Event for all that fail in the same way, and when all are served."""
    old, new = (find_condition(status.conditions, ConditionType.ADAPTERS_READY) for status in (before, after))
    if new is None or (old is not None and old.reason == new.reason):
        return
    if new.reason is Reason.ADAPTERS_LOADED:
        yield Note("AdaptersLoaded", new.message)
    elif new.reason is not Reason.ADAPTERS_LOADING:
        yield Note(new.reason, new.message, warning=True)


def notes_on_status(before: InferenceServiceStatus, after: InferenceServiceStatus) -> list[Note]:
    """What became of the service between two statuses."""
    return [
        *_on_ready(before, after),
        *_on_rollout(before, after),
        *_on_adapters(before, after),
        *_on_failure(before, after),
    ]


_OF_ROLLOUTS: Final = {
    Reason.ROLLING_OUT: "RollingOut",
    Reason.CANARY: "Canary",
    Reason.ROLLOUT_PAUSED: "RolloutPaused",
    Reason.ROLLING_BACK: "RolledBack",
    Reason.ROLLED_BACK: "RolledBack",
}


def _told_as(reason: Reason) -> str:
    return _OF_ROLLOUTS.get(reason, reason)


def _on_rollout(before: InferenceServiceStatus, after: InferenceServiceStatus) -> Iterable[Note]:
    """A rollout that begins, stands still, turns back or is complete; one Event each, whatever is counted in it."""
    old, new = (find_condition(status.conditions, ConditionType.PROGRESSING) for status in (before, after))
    if new is None or (old is not None and _told_as(old.reason) == _told_as(new.reason)):
        return
    if new.reason in _OF_ROLLOUTS:
        by_itself = _status(find_condition(after.conditions, ConditionType.DEGRADED)) == "True"
        warning = by_itself and _told_as(new.reason) == "RolledBack"
        yield Note(_told_as(new.reason), new.message, warning=warning)
    elif new.reason is Reason.CONVERGED and before.current_revision not in (None, after.current_revision):
        yield Note("RolledOut", f"all replicas are of revision {after.current_revision}")


def _on_ready(before: InferenceServiceStatus, after: InferenceServiceStatus) -> Iterable[Note]:
    old, new = (find_condition(status.conditions, ConditionType.READY) for status in (before, after))
    if new is None:
        return
    if new.reason is Reason.INVALID_SPEC and (old is None or old.message != new.message):
        yield Note("InvalidSpec", new.message, warning=True)
    elif _status(old) != "True" and new.status == "True":
        yield Note("Ready", new.message)
    elif _status(old) == "True" and new.status == "False" and new.reason is not Reason.SCALED_TO_ZERO:
        yield Note("NotReady", new.message, warning=True)


def _status(condition: Condition | None) -> str:
    return condition.status if condition is not None else "Unknown"


def _on_failure(before: InferenceServiceStatus, after: InferenceServiceStatus) -> Iterable[Note]:
    old, new = before.last_failure, after.last_failure
    if new is not None and (old is None or not _repeats(old, new)):
        where = f"{new.pod}: " if new.pod else ""
        yield Note(new.cause, f"{where}{new.message}. {new.remedy}".replace("..", "."), warning=True)


def _repeats(old: LastFailure, new: LastFailure) -> bool:
    """Whether it was told already; a revision that is given up repeats what its pod said."""
    return (old.pod, old.cause) == (new.pod, new.cause) and old.message in new.message
