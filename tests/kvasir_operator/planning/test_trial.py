"""When a new revision has failed, how far its canary is, and when golden prompts are compared."""

from datetime import timedelta
from typing import Any

import pytest

from kvasir_operator.api.conditions import Reason
from kvasir_operator.api.rollout import CanaryStep
from kvasir_operator.planning.actions import Action, CompareGoldens, DropRevision, KeepRevision, MarkRevision, Why
from kvasir_operator.planning.history import keep_history
from kvasir_operator.planning.replicas import wanted_replicas
from kvasir_operator.planning.state import Pod, PodCondition, Snapshot, Stage, Termination
from kvasir_operator.planning.trial import canary_replicas, judge, waits_for_goldens
from kvasir_operator.resources import names
from kvasir_operator.resources.template_hash import RevisionTemplate
from kvasir_operator.settings import Settings
from kvasir_runtime.contract.admin_api import AnswerState, LatencyState
from kvasir_runtime.contract.failures import Cause, FailureReport
from tests.kvasir_operator.planning.builders import (
    NOW,
    SILENT,
    ago,
    engine,
    gates,
    pod,
    revision,
    service,
    snapshot,
    waiting,
)

OLD = revision("old", 1, served_at=ago(6000))
SERVES = pod("o", revision="old")


def ends(restarts: int, cause: Cause | None = None, *, age_s: float = 60, **fields: Any) -> Pod:
    """A new pod whose process ended so often."""
    report = FailureReport(cause, "it failed", "mend it").to_json() if cause is not None else ""
    container = waiting("CrashLoopBackOff", ended_before=Termination(1, message=report, finished_at=NOW))
    loops = type(container)(**{name: getattr(container, name) for name in container.__slots__} | {"restarts": restarts})
    return pod("n", Stage.STARTING, age_s=age_s, containers=(loops,), runtime=SILENT, **fields)


def seen(*pods: Pod, since: float = 60, history: Any = None, **spec: Any) -> Snapshot:
    tried = revision("new", 2, progress_since=ago(since))
    template = RevisionTemplate.of(service(), Settings())
    return snapshot(pods, history=history if history is not None else (OLD, tried), template=template, **spec)


def cause(found: Snapshot) -> Reason | None:
    assert found.spec is not None
    failure = judge(found, found.spec, wanted_replicas(found.spec), NOW).failure
    return failure.cause if failure is not None else None


NO_DISK = PodCondition("False", "Unschedulable", "0/1 nodes are available: 1 Insufficient cpu.", ago(6000))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (seen(SERVES, ends(9), rollout={"paused": True}), None),
        (seen(SERVES, ends(9), replicas=0), None),
        (seen(SERVES, ends(1, Cause.MODEL_NOT_FOUND)), Reason.MODEL_NOT_FOUND),
        (seen(SERVES, ends(1, Cause.MODEL_NOT_FOUND, age_s=5)), None),
        (seen(SERVES, ends(2)), None),
        (seen(SERVES, ends(3)), Reason.CRASH_LOOP),
        (seen(SERVES, pod("n", Stage.FINISHED, attempt=2, reason="OutOfX")), Reason.POD_REFUSED),
        (seen(SERVES, pod("n", Stage.FINISHED, attempt=1, reason="OutOfX")), None),
        (seen(SERVES, ends(9, Cause.SOURCE_UNREACHABLE)), None),
        (seen(SERVES, ends(9, Cause.SOURCE_UNREACHABLE), since=1300), Reason.PROGRESS_DEADLINE_EXCEEDED),
        (seen(SERVES, since=1300), Reason.PROGRESS_DEADLINE_EXCEEDED),
        (seen(SERVES, pod("n", conditions=gates(since=ago(60)) | {"Ready": PodCondition("True")}), since=1300), None),
        (seen(SERVES), None),
        (seen(ends(9), history=(revision("new", 1, progress_since=ago(60)),)), None),
        (seen(SERVES, ends(9), rollout={"autoRollback": {"enabled": False}}), None),
    ],
)
def test_judge(found: Snapshot, expected: Reason | None) -> None:
    """The table above `judge`, line by line."""
    assert cause(found) == expected


@pytest.mark.parametrize(
    ("new", "old", "served_s", "expected"),
    [
        (1.6, 1.0, 61, Reason.SLOWER_THAN_BEFORE),
        (1.4, 1.0, 61, None),
        (1.6, 1.0, 59, None),
        (None, 1.0, 61, None),
        (1.6, None, 61, None),
    ],
)
def test_a_slower_revision(new: float | None, old: float | None, served_s: float, expected: Reason | None) -> None:
    """By the ratio, from the second minute on, where both have requests."""

    def measured(name: str, revision: str, value: float | None) -> Pod:
        runtime = engine().model_copy(update={"latency": LatencyState(ttft_p95=value)})
        conditions = gates(since=ago(served_s)) | {"Ready": PodCondition("True")}
        return pod(name, revision=revision, runtime=runtime, conditions=conditions)

    rollout = {"autoRollback": {"ttftP95Ratio": 1.5}}
    assert cause(seen(measured("n", "new", new), measured("o", "old", old), rollout=rollout)) == expected


ERROR_RATE = {"autoRollback": {"errorRate": 0.02}}


def answering(name: str, revision: str, answered: int, failed: int, *, served_s: float = 10) -> Pod:
    """A pod that says how the requests of the last minute ended."""
    runtime = engine().model_copy(update={"answers": AnswerState(answered=answered, failed=failed)})
    conditions = gates(since=ago(served_s)) | {"Ready": PodCondition("True")}
    return pod(name, revision=revision, runtime=runtime, conditions=conditions)


@pytest.mark.parametrize(
    ("new", "old", "rollout", "expected"),
    [
        ((97, 3), (199, 1), ERROR_RATE, Reason.MORE_ERRORS_THAN_BEFORE),
        ((98, 2), (200, 0), ERROR_RATE, None),
        ((0, 19), (200, 0), ERROR_RATE, None),
        ((0, 20), (200, 0), ERROR_RATE, Reason.MORE_ERRORS_THAN_BEFORE),
        ((97, 3), (97, 3), ERROR_RATE, None),
        ((96, 4), (97, 3), ERROR_RATE, Reason.MORE_ERRORS_THAN_BEFORE),
        ((97, 3), (0, 19), ERROR_RATE, Reason.MORE_ERRORS_THAN_BEFORE),
        ((97, 3), (199, 1), {}, None),
        ((97, 3), (199, 1), {"autoRollback": {"errorRate": 0.02, "enabled": False}}, None),
        ((97, 3), (199, 1), {"autoRollback": {"errorRate": 0.03}}, None),
        ((999, 1), (200, 0), {"autoRollback": {"errorRate": 0}}, Reason.MORE_ERRORS_THAN_BEFORE),
    ],
)
def test_a_revision_that_fails_requests(
    new: tuple[int, int], old: tuple[int, int], rollout: dict[str, Any], expected: Reason | None
) -> None:
    """By the share that failed, from 20 requests on, and only if that is worse than at the old revision's pods."""
    found = seen(answering("n", "new", *new), answering("o", "old", *old), rollout=rollout, replicas=2)
    assert cause(found) == expected


def test_the_numbers_of_all_pods_count_and_are_told() -> None:
    """Two pods with 10 requests each; one that does not answer, and an older runtime that does not say, add nothing."""
    said = [answering(f"n{each}", "new", 5, 5) for each in range(2)]
    silent = [pod("s", runtime=SILENT), pod("old-runtime", runtime=engine())]
    found = seen(*said, *silent, answering("o", "old", 100, 0), rollout=ERROR_RATE, replicas=5)
    assert found.spec is not None
    failure = judge(found, found.spec, 5, NOW).failure
    assert failure is not None
    assert failure.message == (
        "10 of 20 requests of the last minute failed, 0 of 100 on revision old, "
        "more than autoRollback.errorRate (0.02) allows"
    )
    assert failure.back_to == "old"


def test_errors_show_before_the_trial_is_over() -> None:
    """A replica that replaced the only old one is watched for a minute; the deadline does not count meanwhile."""
    history = (OLD, revision("new", 2, progress_since=ago(3000)))

    def after(served_s: float, **rollout: Any) -> Any:
        found = seen(answering("n", "new", 19, 0, served_s=served_s), history=history, rollout=rollout)
        assert found.spec is not None
        return keep_history(found, found.spec, 1, NOW)

    assert after(50, **ERROR_RATE, progressDeadline="10s") == ([], ago(-10))
    [complete] = after(60, **ERROR_RATE)[0]
    assert (complete.why, complete.revision) == (Why.COMPLETE, "new")
    assert [each.why for each in after(5)[0]] == [Why.COMPLETE]


def test_a_revision_that_has_served_is_judged_no_more() -> None:
    """Nor is one that was given up already."""
    served = revision("new", 2, progress_since=ago(60), served_at=ago(30))
    assert cause(seen(SERVES, ends(9), history=(OLD, served))) is None


def test_the_deadline_names_what_the_pods_wait_for() -> None:
    """In the failure's message."""
    waits = pod("n", Stage.STARTING, node="", containers=(), runtime=SILENT, conditions={"PodScheduled": NO_DISK})
    found = seen(SERVES, waits, since=1300)
    assert found.spec is not None
    failure = judge(found, found.spec, 1, NOW).failure
    assert failure is not None
    assert failure.message == "no progress for 20m; n: 0/1 nodes are available: 1 Insufficient cpu."
    assert failure.back_to == "old"


@pytest.mark.parametrize(
    ("traffic", "wanted", "expected"), [(10, 1, 1), (10, 3, 1), (25, 10, 2), (50, 3, 1), (100, 3, 3), (99, 200, 198)]
)
def test_replicas_of_a_canary(traffic: int, wanted: int, expected: int) -> None:
    """Its share, rounded down, at least one."""
    assert canary_replicas(CanaryStep.model_validate({"traffic": traffic, "pause": "1m"}), wanted) == expected


# --- What is noted


def noted(found: Snapshot, now: Any = NOW) -> list[Action]:
    assert found.spec is not None
    return list(keep_history(found, found.spec, wanted_replicas(found.spec), now)[0])


def test_the_first_revision_is_kept() -> None:
    """With number 1, and as asked for."""
    [action] = noted(seen(history=()))
    assert isinstance(action, KeepRevision)
    assert (action.revision, action.number, list(action.marks)) == ("new", 1, [names.PROGRESS_ANNOTATION])


def test_asking_anew_takes_old_marks_away_and_gives_a_number() -> None:
    """The other one is asked for no more."""
    before = revision("new", 1, served_at=ago(900))
    other = revision("other", 2, progress_since=ago(600), served_at=ago(300))
    first, second = noted(seen(pod("o", revision="other"), history=(before, other)))
    assert isinstance(first, MarkRevision)
    assert (first.revision, first.why, first.number) == ("new", Why.ASKED_FOR, 3)
    assert first.marks[names.SERVED_ANNOTATION] is None
    assert isinstance(second, MarkRevision)
    assert (second.revision, second.marks) == ("other", {names.PROGRESS_ANNOTATION: None})


def test_a_whole_set_of_serving_replicas_completes_the_trial() -> None:
    """A remaining old one does not."""
    assert [action.why for action in noted(seen(pod("n")))] == [Why.COMPLETE]
    assert noted(seen(pod("n"), SERVES)) == []


def test_pause_and_resume_are_noted() -> None:
    """So that the deadline counts anew."""
    paused = revision("new", 2, progress_since=ago(6000), paused=True)
    [action] = noted(seen(SERVES, rollout={"paused": True}))
    assert action.why is Why.PAUSED
    [action] = noted(seen(SERVES, history=(OLD, paused)))
    assert isinstance(action, MarkRevision)
    assert action.why is Why.RESUMED
    assert action.marks[names.PROGRESS_ANNOTATION] == "2026-03-01T12:00:00Z"


def test_steps_of_a_canary_are_noted() -> None:
    """Reached, then over."""
    canary: dict[str, Any] = {"rollout": {"canary": {"steps": [{"traffic": 50, "pause": "1m"}]}}}
    [action] = noted(seen(SERVES, pod("n"), **canary))
    assert isinstance(action, MarkRevision)
    assert list(action.marks) == [names.STEP_SINCE_ANNOTATION]
    held = revision("new", 2, progress_since=ago(600), step_since=ago(30))
    found = seen(SERVES, pod("n"), history=(OLD, held), **canary)
    assert noted(found) == []
    [action] = noted(found, NOW + timedelta(seconds=30))
    assert isinstance(action, MarkRevision)
    assert action.marks[names.STEP_ANNOTATION] == "1"


GOLDEN: dict[str, Any] = {"rollout": {"autoRollback": {"goldenPrompts": ["x"]}}}


def test_golden_prompts_are_compared_when_a_new_pod_could_serve() -> None:
    """With an old one that serves; its gates stay closed until then."""
    able = pod("n", Stage.STARTING, runtime=engine())
    found = seen(SERVES, able, **GOLDEN)
    assert found.spec is not None
    [action] = noted(found)
    assert isinstance(action, CompareGoldens)
    assert (action.pod, action.against, action.against_revision) == ("n", "o", "old")
    assert waits_for_goldens(able, found, found.spec)
    agreed = seen(SERVES, able, history=(OLD, revision("new", 2, progress_since=ago(9), goldens="agree")), **GOLDEN)
    assert noted(agreed) == []
    assert agreed.spec is not None
    assert not waits_for_goldens(able, agreed, agreed.spec)


def test_without_an_old_pod_nothing_is_compared() -> None:
    """There is nothing to compare with, and nothing to protect."""
    able = pod("n", Stage.STARTING, runtime=engine())
    found = seen(able, **GOLDEN)
    assert found.spec is not None
    assert noted(found) == []
    assert not waits_for_goldens(able, found, found.spec)


def test_revisions_beyond_the_limit_are_forgotten() -> None:
    """Not what pods are of, and not what may have to be gone back to."""
    kept = tuple(revision(f"r{number}", number, served_at=ago(60)) for number in range(1, 6))
    tried = revision("new", 9, progress_since=ago(60))
    found = seen(pod("p", revision="r1"), history=(*kept, tried), rollout={"revisionHistoryLimit": 1})
    dropped = [action.revision for action in noted(found) if isinstance(action, DropRevision)]
    assert dropped == ["r2", "r3"]
