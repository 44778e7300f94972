"""Waits after failures: doubled each time, with jitter, and never shorter than the server asked for."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from kvasir_operator.errors import ApiError, PodError
from kvasir_operator.planning.actions import Action, identity
from kvasir_operator.planning.state import Refusal

SHOWN_AFTER: Final = 3
"""Failures in a row after which one that may pass by itself is shown all the same."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """One write that keeps failing."""

    count: int
    since: datetime
    not_before: datetime
    shown: Refusal | None


class Backoff:
    """The writes of one service that failed at their last try, and when each may be tried again."""

    def __init__(self, initial_s: float, longest_s: float, random: Callable[[], float]) -> None:
        self._initial = initial_s
        self._longest = longest_s
        self._random = random
        self._failures: dict[str, _Failure] = {}

    def admit(self, actions: Iterable[Action], now: datetime) -> list[Action]:
        """The actions that may be tried now. Failures of what is not wanted any more are forgotten."""
        wanted = list(actions)
        keys = {identity(action) for action in wanted}
        self._failures = {key: failure for key, failure in self._failures.items() if key in keys}
        return [action for action in wanted if self._free(identity(action), now)]

    def succeeded(self, action: Action) -> None:
        self._failures.pop(identity(action), None)

    def failed(self, action: Action, error: ApiError | PodError, now: datetime) -> None:
        """Have the action wait: 0.5 s, 1 s, 2 s … each times 0.5 to 1, so that not all come back at once."""
        before = self._failures.get(identity(action))
        count = before.count + 1 if before is not None else 1
        since = before.since if before is not None else now
        wait = self.wait(count)
        if isinstance(error, ApiError) and error.retry_after is not None:
            wait = max(wait, error.retry_after)
        tells = count >= SHOWN_AFTER or (isinstance(error, ApiError) and not error.passing)
        if isinstance(error, ApiError) and error.namespace_ends:
            tells = False
        shown = Refusal(action.kind, action.pod, str(error), since) if tells else None
        self._failures[identity(action)] = _Failure(count, since, now + timedelta(seconds=wait), shown)

    def wait(self, count: int) -> float:
        """Seconds after the `count`-th failure in a row."""
        full = min(self._longest, self._initial * 2.0 ** min(count - 1, 30))
        return full * (0.5 + 0.5 * self._random())

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """Failures that people should know of."""
        return tuple(failure.shown for failure in self._failures.values() if failure.shown is not None)

    @property
    def due(self) -> datetime | None:
        """When the next of them may be tried."""
        return min((failure.not_before for failure in self._failures.values()), default=None)

    def _free(self, key: str, now: datetime) -> bool:
        failure = self._failures.get(key)
        return failure is None or failure.not_before <= now
