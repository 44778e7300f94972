"""Scaling as a part of the plan: who decides, what is kept, and that an interruption leaves nothing to guess."""

from datetime import timedelta
from typing import Any

import pytest

from kvasir_operator.api.conditions import Reason
from kvasir_operator.api.v1alpha1 import ScalingStatus
from kvasir_operator.planning.actions import SetReplicas, Why
from kvasir_operator.planning.autoscaling import Outcome, autoscale
from kvasir_operator.planning.facts import Facts
from kvasir_operator.planning.state import Snapshot, Stage
from kvasir_operator.planning.verdicts import scaling_active
from kvasir_operator.scaling.ownership import LAST_APPLIED, SOMEBODY, Claims, owner_of, read_claims
from kvasir_operator.scaling.record import changes_of, replay
from kvasir_operator.scaling.windows import Memory
from tests.kvasir_operator.planning.builders import NOW, SILENT, engine, pod, snapshot

SCALING = {"minReplicas": 1, "maxReplicas": 8, "scaleDown": {"stabilization": "60s", "maxRatePerMinute": 1}}


BIG = SCALING | {"targets": {"kvCacheUtilization": 0.6}}


def serving(count: int, active: int, status: dict[str, Any] | None = None, **fields: Any) -> Snapshot:
    """That many replicas with `active` of their 100 blocks in use."""
    pods = [pod(f"p{number}", runtime=engine(active=active, inflight=1)) for number in range(count)]
    made: dict[str, Any] = {
        "replicas": count,
        "scaling": SCALING,
        "status": {"scaling": status} if status is not None else None,
    }
    return snapshot(pods, **(made | fields))


def looked(before: Snapshot, memory: Memory | None = None, after_s: float = 0) -> Outcome:
    return autoscale(before, memory or Memory(), NOW + timedelta(seconds=after_s))


def test_pressure_on_the_cache_adds_replicas() -> None:
    """90 of 100 blocks at each of two: 2 x 0.9 / 0.75 = 2.4, so three; the inputs decide the same again."""
    found = looked(serving(2, 90))
    assert found.action == SetReplicas(3, Why.SCALE_UP)
    assert found.decision is not None
    assert replay(found.decision).same
    assert found.decision.reason.startswith("Up: KVCache asks for 2.4 (2,880 KV tokens, 1,600 x 75% a replica)")
    kept = found.intent().scaling
    assert kept is not None
    assert (kept.replicas, kept.last_decision, len(kept.history)) == (2, found.decision, 1)


def test_what_was_set_is_known_when_it_is_done() -> None:
    """Only then: until it is, both the old and the new number are our own."""
    found = looked(serving(2, 90))
    for done, replicas in ((True, 3), (False, 2)):
        settled = found.settle(found.snapshot, done=done).autoscaling
        assert settled is not None
        assert settled.status is not None
        assert settled.status.replicas == replicas


def test_a_decision_that_was_not_carried_out_is_made_again_and_kept_once() -> None:
    """The write failed, or the operator ended before it."""
    first = looked(serving(2, 90)).intent().scaling
    assert first is not None
    found = looked(serving(2, 90, first.to_manifest()), after_s=7)
    assert found.told
    assert found.action == SetReplicas(3, Why.SCALE_UP)
    assert found.intent().scaling == first
    more = looked(serving(2, 99, first.model_copy(update={"replicas": 2}).to_manifest(), scaling=BIG), after_s=7)
    assert not more.told
    again = more.intent().scaling
    assert again is not None
    assert (len(again.history), again.history[0].to) == (1, 4)


def test_replicas_go_after_the_window_one_a_minute() -> None:
    """Five idle replicas: nothing for 60 s, then one; the status tells when the next may go."""
    memory, status = Memory(), ScalingStatus(replicas=5)
    for seconds in range(0, 60, 5):
        found = looked(serving(5, 0, status.to_manifest()), memory, seconds)
        assert found.action is None
        assert found.due is not None
    found = looked(serving(5, 0, status.to_manifest()), memory, 60)
    assert found.action == SetReplicas(4, Why.SCALE_DOWN)
    kept = found.settle(found.snapshot, done=True).autoscaling
    assert kept is not None
    assert kept.status is not None
    limited = looked(serving(4, 0, kept.status.to_manifest()), memory, 70)
    assert limited.action is None
    assert looked(serving(4, 0, kept.status.to_manifest()), memory, 120).action == SetReplicas(3, Why.SCALE_DOWN)


def test_silence_changes_nothing() -> None:
    """None of the replicas tells its load."""
    silent = snapshot([pod("a", runtime=SILENT), pod("b", runtime=SILENT)], replicas=2, scaling=SCALING)
    found = looked(silent)
    assert found.action is None
    verdict = scaling_active(Facts(found.snapshot, NOW))
    assert verdict is not None
    assert (verdict.status, verdict.reason) == ("Unknown", Reason.METRICS_UNKNOWN)


def test_pods_that_start_are_coming_capacity() -> None:
    """One of three serves and is full: three are enough."""
    pods = [pod("a", runtime=engine(active=95)), *(pod(name, Stage.STARTING) for name in "bc")]
    assert looked(snapshot(pods, replicas=3, scaling=SCALING)).action is None


def test_another_owner_decides_alone() -> None:
    """Whatever the load."""
    found = looked(serving(2, 90, claims=Claims(scale="kube-controller-manager", recorded=True)))
    assert found.action is None
    verdict = scaling_active(Facts(found.snapshot, NOW))
    assert verdict is not None
    assert (verdict.status, verdict.reason) == ("False", Reason.OWNED_BY_OTHER)
    assert "kube-controller-manager" in verdict.message


def test_without_scaling_nothing_is_kept_of_it() -> None:
    """Taking it out and putting it back hands the replicas back."""
    found = looked(serving(2, 90, {"replicas": 2, "owner": SOMEBODY}, scaling=None))
    assert found.action is None
    assert found.snapshot.autoscaling is not None
    assert found.snapshot.autoscaling.status is None


def entry(manager: str, *, operation: str = "Update", subresource: str = "", replicas: bool = True) -> dict[str, Any]:
    fields: dict[str, Any] = {"f:spec": {"f:replicas": {}}} if replicas else {"f:status": {}}
    made = {"manager": manager, "operation": operation, "fieldsV1": fields}
    return made | ({"subresource": subresource} if subresource else {})


STATUS = entry("kvasir-operator", subresource="status", replicas=False)
IN_MANIFEST = "(the manifest states spec.replicas)"
STATED = {LAST_APPLIED: '{"spec": {"replicas": 2}}'}
SILENT_MANIFEST = {LAST_APPLIED: '{"spec": {"scaling": {"maxReplicas": 3}}}'}


@pytest.mark.parametrize(
    ("metadata", "replicas", "status", "owner"),
    [
        (
            {"managedFields": [entry("argocd", operation="Apply")]},
            2,
            None,
            f"argocd {IN_MANIFEST}",
        ),
        ({"annotations": STATED}, 2, None, f"kubectl apply {IN_MANIFEST}"),
        ({"annotations": SILENT_MANIFEST, "managedFields": [entry("kubectl"), STATUS]}, 2, None, ""),
        ({"annotations": {LAST_APPLIED: "no JSON"}}, 2, None, ""),
        ({"managedFields": [entry("hpa", subresource="scale"), STATUS]}, 2, ScalingStatus(replicas=2), "hpa"),
        ({"managedFields": [entry("kvasir-operator", subresource="scale"), STATUS]}, 9, ScalingStatus(replicas=2), ""),
        ({"managedFields": [entry("kubectl")]}, 2, ScalingStatus(replicas=2), ""),
        ({}, 3, ScalingStatus(replicas=2), SOMEBODY),
        ({}, 2, ScalingStatus(replicas=2, owner=SOMEBODY), SOMEBODY),
        ({}, 7, None, ""),
    ],
)
def test_who_owns_the_replicas(
    metadata: dict[str, Any], replicas: int, status: ScalingStatus | None, owner: str
) -> None:
    """The table of `ownership`, on servers that record subresources and on those that do not."""
    assert owner_of(read_claims(metadata, "kvasir-operator"), replicas, status) == owner


def test_changes_of_the_last_minute_are_read_from_the_status() -> None:
    """So they outlive the operator."""
    found = looked(serving(2, 90)).intent().scaling
    changes = changes_of(found, NOW + timedelta(seconds=30))
    assert (changes.added, changes.removed, changes.added_ago_s) == (1, 0, 30)
    assert changes_of(found, NOW + timedelta(seconds=60)).added == 0
