"""Quantities, durations and times, and what every model of the API does."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from kvasir_operator.api.base import Duration, Quantity, Time, format_time
from kvasir_operator.api.v1alpha1 import InferenceService

MINIMAL: dict[str, Any] = {
    "metadata": {"name": "tiny", "namespace": "team", "uid": "u-1"},
    "spec": {"model": {"source": {"uri": "pvc://models/tiny"}}},
}


@pytest.mark.parametrize(("text", "count"), [("512Mi", 512 * 2**20), ("1.5k", 1500), ("7", 7), (".5Gi", 2**29)])
def test_a_quantity_stays_text_and_knows_its_bytes(text: str, count: int) -> None:
    quantity = TypeAdapter(Quantity).validate_python(text)
    assert (quantity, quantity.bytes) == (text, count)


@pytest.mark.parametrize(("text", "seconds"), [("1h30m", 5400), ("250ms", 0.25), ("2d", 172_800), ("0s", 0)])
def test_a_duration_stays_text_and_knows_its_seconds(text: str, seconds: float) -> None:
    duration = TypeAdapter(Duration).validate_python(text)
    assert (duration, duration.seconds) == (text, seconds)


@pytest.mark.parametrize(
    ("kind", "text"), [(Quantity, "5MB"), (Quantity, "-1Gi"), (Duration, "5"), (Duration, "1h 5m")]
)
def test_what_kubernetes_would_not_read_is_refused(kind: type, text: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_python(text)


def test_times_are_kept_in_utc_to_the_second() -> None:
    local = datetime(2026, 3, 1, 14, 30, 5, 999_999, tzinfo=timezone(timedelta(hours=2)))
    assert format_time(local) == "2026-03-01T12:30:05Z"
    assert TypeAdapter(Time).validate_python(local) == datetime(2026, 3, 1, 12, 30, 5, tzinfo=UTC)


def test_an_object_is_rendered_as_it_was_written() -> None:
    """What was left unset does not appear, whatever its default is."""
    assert InferenceService.from_manifest(MINIMAL).to_manifest() == MINIMAL


def test_names_are_camel_case_outside_and_snake_case_inside() -> None:
    service = InferenceService.from_manifest(
        {**MINIMAL, "spec": {**MINIMAL["spec"], "scaling": {"maxReplicas": 3, "targets": {"ttftP95": "2s"}}}}
    )
    assert service.spec.scaling is not None
    assert service.spec.scaling.targets.ttft_p95 == "2s"
    assert service.to_manifest()["spec"]["scaling"] == {"maxReplicas": 3, "targets": {"ttftP95": "2s"}}


def test_fields_of_a_newer_api_are_left_out() -> None:
    spec = {**MINIMAL["spec"], "teleport": {"to": "Mars"}}
    assert InferenceService.from_manifest({**MINIMAL, "spec": spec}).to_manifest() == MINIMAL


def test_models_cannot_be_changed_in_place() -> None:
    service = InferenceService.from_manifest(MINIMAL)
    with pytest.raises(ValidationError, match="frozen"):
        service.spec.replicas = 3  # type: ignore[misc]


def test_a_model_is_served_under_the_name_of_the_service_unless_told_otherwise() -> None:
    named = {"model": {"source": {"uri": "pvc://models/tiny"}, "servedName": "org/tiny"}}
    assert InferenceService.from_manifest(MINIMAL).served_name == "tiny"
    assert InferenceService.from_manifest({**MINIMAL, "spec": named}).served_name == "org/tiny"


def test_a_status_that_cannot_be_read_counts_as_absent() -> None:
    """Somebody edited it by hand; the operator computes it again."""
    service = InferenceService.from_manifest({**MINIMAL, "status": {"replicas": "many", "url": "http://x"}})
    assert service.status.to_manifest() == {}


def test_conditions_of_a_newer_operator_are_left_out_of_a_status() -> None:
    known = {"type": "Ready", "status": "True", "reason": "ReplicasReady", "lastTransitionTime": "2026-03-01T12:00:00Z"}
    status = {"replicas": 2, "conditions": [known, {**known, "type": "Levitating"}, {**known, "reason": "Magic"}]}
    service = InferenceService.from_manifest({**MINIMAL, "status": status})
    assert service.status.replicas == 2
    assert [condition.to_manifest() for condition in service.status.conditions] == [known]
