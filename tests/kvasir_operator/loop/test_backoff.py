"""Which failed writes are tried when, and which are shown to people."""

from datetime import UTC, datetime, timedelta

import pytest

from kvasir_operator.backoff import SHOWN_AFTER, Backoff
from kvasir_operator.errors import NAMESPACE_ENDS, ApiError
from kvasir_operator.planning.actions import ApplySecret, Why

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ACTION = ApplySecret(Why.MISSING)


def backoff_after(*errors: ApiError) -> Backoff:
    made = Backoff(1.0, 60.0, lambda: 1.0)
    for error in errors:
        made.failed(ACTION, error, NOW)
    return made


@pytest.mark.parametrize(
    ("errors", "shown"),
    [
        ([ApiError(500, "", "internal")], False),
        ([ApiError(500, "", "internal")] * SHOWN_AFTER, True),
        ([ApiError(403, "Forbidden", "quota exceeded")], True),
        ([ApiError(403, NAMESPACE_ENDS, "being terminated")] * SHOWN_AFTER, False),
    ],
)
def test_what_people_must_know_is_shown(errors: list[ApiError], shown: bool) -> None:
    """Passing failures after a while, lasting ones at once, and never that a namespace on its way out takes nothing."""
    assert bool(backoff_after(*errors).refusals) is shown


def test_waits_double_and_respect_what_the_server_asks_for() -> None:
    error = ApiError(429, "", "slow down", retry_after=7.0)
    made = backoff_after(error)
    assert made.due == NOW + timedelta(seconds=7)
    assert made.admit([ACTION], NOW + timedelta(seconds=6)) == []
    assert made.admit([ACTION], NOW + timedelta(seconds=7)) == [ACTION]
    assert backoff_after(*[ApiError(500, "", "")] * 3).due == NOW + timedelta(seconds=4)
