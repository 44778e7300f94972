"""Waits after failed writes."""

from datetime import UTC, datetime, timedelta

import pytest

from kvasir_operator.backoff import SHOWN_AFTER, Backoff
from kvasir_operator.errors import ApiError, PodError
from kvasir_operator.planning.actions import ApplyService, CreatePod, Why

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
CREATE = CreatePod("p", "r", Why.SCALE_UP)
APPLY = ApplyService(Why.MISSING)


def make(random: float = 1.0) -> Backoff:
    return Backoff(0.5, 60.0, lambda: random)


@pytest.mark.parametrize(("count", "seconds"), [(1, 0.5), (2, 1.0), (3, 2.0), (7, 32.0), (8, 60.0), (500, 60.0)])
def test_waits_double_up_to_a_bound(count: int, seconds: float) -> None:
    """And jitter halves them at most."""
    assert make().wait(count) == seconds
    assert make(0.0).wait(count) == seconds / 2


def test_a_failed_action_waits_and_others_do_not() -> None:
    """It is tried again when its time has come; success ends the matter."""
    backoff = make()
    backoff.failed(CREATE, ApiError(500, "", "sorry"), NOW)
    assert backoff.admit([CREATE, APPLY], NOW) == [APPLY]
    assert backoff.due == NOW + timedelta(seconds=0.5)
    assert backoff.admit([CREATE], NOW + timedelta(seconds=0.5)) == [CREATE]
    backoff.succeeded(CREATE)
    assert backoff.admit([CREATE], NOW) == [CREATE]


def test_what_is_not_wanted_any_more_is_forgotten() -> None:
    """Wanted again, it starts anew."""
    backoff = make()
    backoff.failed(CREATE, ApiError(403, "Forbidden", "no"), NOW)
    backoff.admit([], NOW)
    assert backoff.refusals == ()
    assert backoff.admit([CREATE], NOW) == [CREATE]


def test_the_servers_own_wish_counts() -> None:
    """Retry-After is the least wait."""
    backoff = make()
    backoff.failed(CREATE, ApiError(429, "TooManyRequests", "later", retry_after=7), NOW)
    assert backoff.due == NOW + timedelta(seconds=7)


@pytest.mark.parametrize(
    ("error", "shown_after"),
    [
        (ApiError(403, "Forbidden", "exceeded quota"), 1),
        (ApiError(422, "Invalid", "bad"), 1),
        (ApiError(409, "Conflict", "changed"), SHOWN_AFTER),
        (ApiError(429, "TooManyRequests", "later"), SHOWN_AFTER),
        (ApiError(0, "NoAnswer", "down"), SHOWN_AFTER),
        (PodError(0, "silent"), SHOWN_AFTER),
    ],
)
def test_what_is_shown(error: ApiError | PodError, shown_after: int) -> None:
    """A lasting refusal at once; what may pass only when it does not. The time is that of the first."""
    backoff = make()
    for attempt in range(1, shown_after + 1):
        assert backoff.refusals == ()
        backoff.failed(CREATE, error, NOW + timedelta(seconds=attempt))
    (refusal,) = backoff.refusals
    assert (refusal.action, refusal.pod, refusal.message) == ("CreatePod", "p", str(error))
    assert refusal.since == NOW + timedelta(seconds=1)
