"""The status: numbers, revisions, capacity, the last failure, and what is worth a write."""

from datetime import timedelta

import pytest

from kvasir_operator.api.v1alpha1 import InferenceServiceStatus, LastFailure, Summary
from kvasir_operator.planning.state import Stage, Termination
from kvasir_operator.planning.status import Change, change_between, make_status
from kvasir_runtime.contract.failures import Cause, FailureReport
from tests.kvasir_operator.planning.builders import NOW, SILENT, ago, engine, pod, revision, snapshot, waiting


def test_numbers_of_a_rollout_with_a_scale_down():
    """Pods that go are no replicas; ready ones are those among the endpoints."""
    pods = [
        pod("n1", runtime=engine(active=50)),
        pod("n2", Stage.STARTING),
        pod("o1", revision="old", runtime=engine(active=30)),
        pod("o2", Stage.DRAINING, revision="old"),
        pod("gone", Stage.LEAVING),
        pod("dead", Stage.FINISHED),
    ]
    before = {"currentRevision": "old"}
    history = (revision("new", 5), revision("old", 4, served_at=ago(60)))
    status = make_status(snapshot(pods, replicas=2, status=before, history=history), NOW).to_manifest()
    wanted = {
        "observedGeneration": 3,
        "url": "http://tiny.team.svc:8000",
        "selector": "app.kubernetes.io/component=runtime,kvasir.dev/service=tiny",
        "replicas": 3,
        "readyReplicas": 2,
        "updatedReplicas": 2,
        "desiredReplicas": 2,
        "summary": {"model": "tiny", "replicas": "2/2", "kvCache": "40%"},
        "currentRevision": "old",
        "updateRevision": "new",
        "revisions": [
            {
                "name": "old",
                "number": 4,
                "createdAt": "2026-03-01T11:00:00Z",
                "replicas": 1,
                "readyReplicas": 1,
                "message": "has served since 2026-03-01T11:59:00Z",
            },
            {
                "name": "new",
                "number": 5,
                "createdAt": "2026-03-01T11:00:00Z",
                "replicas": 2,
                "readyReplicas": 1,
                "message": "",
            },
        ],
    }
    assert {key: status[key] for key in wanted} == wanted
    assert status["capacity"] == {
        "weights": 2**20, "kvBytesPerToken": 512, "kvTokens": 1600, "maxConcurrentSequences": 0, "source": "measured",
    }  # fmt: skip


def summary(status: InferenceServiceStatus) -> Summary:
    assert status.summary is not None
    return status.summary


def last_failure(status: InferenceServiceStatus) -> LastFailure:
    assert status.last_failure is not None
    return status.last_failure


def test_unknown_use_is_not_zero():
    """Replicas that do not answer have no part in the mean; with none that answers there is no number."""
    assert summary(make_status(snapshot([pod("a", runtime=SILENT)]), NOW)).kv_cache == ""
    mixed = [pod("a", runtime=SILENT), pod("b", runtime=engine(active=80))]
    assert summary(make_status(snapshot(mixed), NOW)).kv_cache == "80%"


def test_what_was_measured_stays_while_nobody_answers():
    """Capacity does not vanish with a restart."""
    before = make_status(snapshot([pod("a")]), NOW)
    after = make_status(snapshot([pod("a", runtime=SILENT)], status=before.to_manifest()), NOW)
    assert after.capacity == before.capacity


def test_the_current_revision_changes_when_the_last_old_pod_is_out_of_traffic():
    """It is the revision that serves."""
    before = {"currentRevision": "old"}
    half = [pod("n"), pod("o", revision="old")]
    done = [pod("n"), pod("o", Stage.DRAINING, revision="old")]
    assert make_status(snapshot(half, status=before), NOW).current_revision == "old"
    assert make_status(snapshot(done, status=before), NOW).current_revision == "new"


def failing(pod_name: str = "x", words: str = "it failed", at=NOW):
    end = Termination(1, message=FailureReport(Cause.ENGINE_DIED, words).to_json(), finished_at=at)
    container = waiting("CrashLoopBackOff", ended_before=end)
    return pod(pod_name, Stage.STARTING, containers=(container,), runtime=SILENT)


def test_the_last_failure_outlives_its_pod():
    """It is history; a newer one takes its place."""
    first = make_status(snapshot([failing(at=ago(60))]), NOW)
    assert last_failure(first).pod == "x"
    assert last_failure(first).time == ago(60)
    healed = make_status(snapshot([pod("a")], status=first.to_manifest()), NOW)
    assert healed.last_failure == first.last_failure
    second = make_status(snapshot([failing("y")], status=first.to_manifest()), NOW)
    assert (last_failure(second).pod, last_failure(second).time) == ("y", NOW)


def test_a_vague_message_does_not_replace_a_full_one():
    """ImagePullBackOff says less than ErrImagePull did."""

    def pulling(reason: str, message: str):
        return pod("x", Stage.STARTING, containers=(waiting(reason, message),), runtime=SILENT)

    first = make_status(snapshot([pulling("ErrImagePull", "manifest unknown")]), NOW)
    later = NOW + timedelta(seconds=20)
    second = make_status(snapshot([pulling("ImagePullBackOff", "Back-off")], status=first.to_manifest()), later)
    assert second.last_failure == first.last_failure
    assert change_between(first, second) is Change.NONE


def test_an_invalid_spec_keeps_the_numbers():
    """Pods go on serving, and are still counted."""
    before = make_status(snapshot([pod("a")]), NOW)
    after = make_status(snapshot([pod("a")], spec=None, revision="", status=before.to_manifest()), NOW)
    assert (after.ready_replicas, after.desired_replicas, after.update_revision) == (1, 1, "new")
    assert summary(after).replicas == "1/1"


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        ([pod("a")], [pod("a")], Change.NONE),
        ([pod("a")], [pod("a", runtime=engine(active=9))], Change.DETAIL),
        ([pod("a", Stage.STARTING, runtime=SILENT)], [pod("a", Stage.STARTING)], Change.DETAIL),
        ([pod("a", Stage.STARTING)], [pod("a")], Change.NEWS),
        ([pod("a")], [failing("a")], Change.NEWS),
    ],
    ids=["same", "cache use", "progress", "ready", "failed"],
)
def test_what_is_worth_a_write(before, after, change):
    """Details wait, news do not."""
    first = make_status(snapshot(before), NOW)
    second = make_status(snapshot(after, status=first.to_manifest()), NOW + timedelta(seconds=5))
    assert change_between(first, second) is change


def test_the_status_of_the_same_snapshot_is_the_same():
    """Written once, a status is not written again."""
    first = make_status(snapshot([pod("a"), failing()]), NOW)
    again = make_status(snapshot([pod("a"), failing()], status=first.to_manifest()), NOW + timedelta(hours=1))
    assert again == first
