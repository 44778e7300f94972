"""Kubernetes Events: few, and worth reading."""

import pytest

from kvasir_operator.api.field_errors import FieldError
from kvasir_operator.api.v1alpha1 import InferenceServiceStatus
from kvasir_operator.planning.actions import Action, ApplySecret, CreatePod, DeletePod, Note, Undrain, Why
from kvasir_operator.planning.gates import shut
from kvasir_operator.planning.notes import notes_on_actions, notes_on_status
from kvasir_operator.planning.state import Stage
from kvasir_operator.planning.status import make_status
from tests.kvasir_operator.planning.builders import NOW, pod, snapshot
from tests.kvasir_operator.planning.test_verdicts import NO_MODEL

EMPTY = InferenceServiceStatus()


def test_pods_of_one_scale_up_share_an_event():
    """Ten pods are one line."""
    done: list[Action] = [
        ApplySecret(Why.MISSING),
        CreatePod("a", "r", Why.SCALE_UP),
        CreatePod("b", "r", Why.SCALE_UP),
    ]
    before = InferenceServiceStatus(desired_replicas=1)
    assert notes_on_actions(done, before, 3) == [Note("ScaledUp", "from 1 to 3 replicas: created a, b")]
    assert notes_on_actions(done, EMPTY, 2) == [Note("ScaledUp", "from 0 to 2 replicas: created a, b")]


def test_what_happens_to_pods():
    """Replaced, drained, called back, removed; an overrun deadline is a warning."""
    done: list[Action] = [
        CreatePod("b", "r", Why.REPLACE, 1, "a"),
        CreatePod("c", "r", Why.REPLACE),
        CreatePod("n", "new", Why.ROLLOUT),
        shut(pod("d"), Why.SCALE_DOWN),
        Undrain("e", "u", "ip", Why.DEMAND_RETURNED),
        DeletePod("f", "u", Why.DRAINED),
        DeletePod("g", "u", Why.DRAIN_DEADLINE),
    ]
    assert [(note.reason, note.message, note.warning) for note in notes_on_actions(done, EMPTY, 2)] == [
        ("Replaced", "created b in place of a", False),
        ("Replaced", "created c in place of one that is gone", False),
        ("Draining", "d leaves the endpoints: fewer replicas are wanted", False),
        ("DrainCancelled", "e is needed again", False),
        ("Removed", "deleted f: all its requests are finished", False),
        ("DrainDeadline", "deleted g, whose requests outlasted drain.timeout", True),
    ]


def changed(before, after):
    first = make_status(snapshot(**before), NOW)
    second = make_status(snapshot(**after, status=first.to_manifest()), NOW)
    return [(note.reason, note.warning) for note in notes_on_status(first, second)]


def test_what_becomes_of_the_service():
    """Ready, not ready, failed, not valid: told when it changes, and once."""
    starting, serving = {"pods": [pod("a", Stage.STARTING)]}, {"pods": [pod("a")]}
    broken, invalid = {"pods": [NO_MODEL]}, {"pods": [pod("a")], "errors": (FieldError("spec.x", "must be y"),)}
    assert changed(starting, serving) == [("Ready", False)]
    assert changed(serving, serving) == []
    assert changed(serving, starting) == [("NotReady", True)]
    assert changed(starting, broken) == [("ModelNotFound", True)]
    assert changed(broken, broken) == []
    assert changed(serving, invalid) == [("InvalidSpec", True)]
    assert changed(invalid, invalid) == []
    assert changed(serving, {"pods": [], "replicas": 0}) == []


def progressing(status: str, reason: str, message: str = "m", degraded: str = "False") -> InferenceServiceStatus:
    """A status whose Progressing says that."""
    time = {"lastTransitionTime": "2026-03-01T12:00:00Z"}
    conditions = [
        {"type": "Progressing", "status": status, "reason": reason, "message": message, **time},
        {"type": "Degraded", "status": degraded, "reason": "Healthy", **time},
    ]
    return InferenceServiceStatus.model_validate({"conditions": conditions})


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (("False", "Converged"), ("True", "RollingOut"), [("RollingOut", False)]),
        (("True", "RollingOut"), ("True", "RollingOut", "further"), []),
        (("True", "RollingOut"), ("Unknown", "RolloutPaused"), [("RolloutPaused", False)]),
        (("True", "RollingOut"), ("True", "RollingBack", "m", "True"), [("RolledBack", True)]),
        (("True", "RollingBack"), ("False", "RolledBack", "m", "True"), []),
        (("False", "Converged"), ("True", "RollingBack"), [("RolledBack", False)]),
        (("True", "LoadingModel"), ("False", "Converged"), []),
    ],
)
def test_a_rollout_is_told_in_one_event_a_turn_of_it(
    before: tuple[str, ...], after: tuple[str, ...], expected: list[tuple[str, bool]]
) -> None:
    """Going back by itself is a warning, by hand it is not."""
    notes = notes_on_status(progressing(*before), progressing(*after))
    assert [(note.reason, note.warning) for note in notes] == expected


def test_a_failure_is_not_told_twice_in_more_words() -> None:
    """That its revision is given up is told by RolledBack."""
    time = "2026-03-01T12:00:00Z"
    failure = {"time": time, "pod": "p", "cause": "CrashLoop", "remedy": "r"}
    said = InferenceServiceStatus.model_validate({"lastFailure": failure | {"message": "it ended"}})
    more = InferenceServiceStatus.model_validate({"lastFailure": failure | {"message": "revision 2 failed: it ended"}})
    assert notes_on_status(said, more) == []
    assert [note.reason for note in notes_on_status(more, said)] == ["CrashLoop"]
