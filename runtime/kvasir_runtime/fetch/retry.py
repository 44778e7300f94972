"""Trying again: how often, and how long to wait in between."""

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.fetch.source import TransientError

T = TypeVar("T")


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter", 2015).

    `attempts` counts tries in a row that brought nothing; one that brought bytes starts the count again. With the
    defaults a source may be away for about two minutes. `wait` sleeps (it is `Event.wait` of the stop event, so that
    a signal ends it) and returns whether to stop.
    """

    attempts: int = 8
    first: float = 1.0  # seconds
    longest: float = 30.0  # seconds
    wait: Callable[[float], bool] = field(default_factory=lambda: threading.Event().wait)
    jitter: Callable[[], float] = random.random

    def delay(self, failures: int, retry_after: float | None) -> float:
        """Seconds to wait after `failures` failures in a row; what the server asks for counts, within the bound."""
        ceiling = min(self.longest, self.first * 2.0 ** (failures - 1))
        return max(ceiling * self.jitter(), min(retry_after or 0.0, self.longest))

    def pause(self, failures: int, error: TransientError, what: str) -> None:
        """Wait for the next attempt; raises KvasirError (SourceUnreachable) when there is none left."""
        if failures >= self.attempts:
            raise KvasirError(
                Cause.SOURCE_UNREACHABLE,
                f"gave up on {what} after {failures} attempts in a row without a byte: {error}",
                "check that the source is up and reachable from this node (proxy, DNS, NetworkPolicy); "
                "the next start continues where this one ended",
            )
        if self.wait(self.delay(failures, error.retry_after)):
            raise Stopped

    def call(self, action: Callable[[], T], what: str) -> T:
        """`action`'s result, trying again on TransientError."""
        failures = 0
        while True:
            try:
                return action()
            except TransientError as error:
                failures += 1
                self.pause(failures, error, what)


class Stopped(BaseException):
    """The process was told to end; what was fetched stays and is continued by the next one."""
