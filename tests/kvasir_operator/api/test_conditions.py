"""Conditions: set, found, and when their time moves."""

from datetime import UTC, datetime, timedelta

import pytest

from kvasir_operator.api.conditions import (
    Condition,
    ConditionStatus,
    ConditionType,
    Reason,
    drop_condition,
    find_condition,
    set_condition,
)

THEN = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
NOW = THEN + timedelta(minutes=5)


def ready(status: ConditionStatus, reason: Reason = Reason.NO_REPLICAS_READY) -> Condition:
    return Condition(type=ConditionType.READY, status=status, reason=reason, last_transition_time=THEN)


@pytest.mark.parametrize(
    ("before", "after", "since"),
    [
        ("False", "False", THEN),
        ("False", "True", NOW),
        ("True", "Unknown", NOW),
        ("Unknown", "Unknown", THEN),
    ],
)
def test_the_time_moves_with_the_status_alone(before: ConditionStatus, after: ConditionStatus, since: datetime) -> None:
    """Another reason or message is no transition."""
    conditions = set_condition([ready(before)], ConditionType.READY, after, Reason.REPLICAS_READY, "new", now=NOW)
    found = find_condition(conditions, ConditionType.READY)
    assert found == Condition(
        type=ConditionType.READY,
        status=after,
        reason=Reason.REPLICAS_READY,
        message="new",
        last_transition_time=since,
    )


def test_a_new_condition_takes_its_place_in_the_order_of_types() -> None:
    before = [ready("True", Reason.REPLICAS_READY)]
    conditions = set_condition(before, ConditionType.DEGRADED, "False", Reason.HEALTHY, now=NOW)
    conditions = set_condition(
        conditions, ConditionType.MODEL_AVAILABLE, "True", Reason.MODEL_LOADED, now=NOW, observed_generation=7
    )
    assert [condition.type for condition in conditions] == ["Ready", "ModelAvailable", "Degraded"]
    assert [condition.status for condition in conditions] == ["True", "True", "False"]
    assert before == [ready("True", Reason.REPLICAS_READY)], "the argument is not changed"


def test_a_condition_is_written_as_kubernetes_does() -> None:
    [condition] = set_condition(
        [], ConditionType.READY, "True", Reason.REPLICAS_READY, "2 of 2", now=NOW, observed_generation=3
    )
    assert condition.to_manifest() == {
        "type": "Ready",
        "status": "True",
        "reason": "ReplicasReady",
        "message": "2 of 2",
        "lastTransitionTime": "2026-03-01T12:05:00Z",
        "observedGeneration": 3,
    }


def test_what_was_never_set_or_was_dropped_is_not_found() -> None:
    assert find_condition([], ConditionType.READY) is None
    assert drop_condition([ready("True")], ConditionType.READY) == []
