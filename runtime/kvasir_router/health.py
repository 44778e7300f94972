"""Whether a replica may be asked, from how it answered. Pure, time an argument in seconds.

| circuit   | event                                 | then                                             |
|-----------|---------------------------------------|--------------------------------------------------|
| closed    | `FAILURES` failures in a row          | open for 1 s, doubled each time up to 30 s       |
| open      | its time is over                      | half-open: one request, or health check, may try |
| half-open | it succeeds                           | closed                                           |
| half-open | it fails                              | open, for twice as long                          |
| any       | 503 or 429: it takes no work just now | passed over for a second; no failure             |
"""

from dataclasses import dataclass
from typing import Final

from kvasir_runtime.contract.router_api import CircuitState

FAILURES: Final = 3
FIRST_OPEN_S: Final = 1.0
LONGEST_OPEN_S: Final = 30.0
PASSED_OVER_S: Final = 1.0

MISSED_CHECKS: Final = 2
"""Health checks in a row that a replica may not miss."""


@dataclass(slots=True)
class Health:
    """Of one endpoint. Mutated by what happens to requests and health checks."""

    failures: int = 0
    open_until: float | None = None
    open_s: float = FIRST_OPEN_S
    trying: bool = False
    passed_over_until: float = 0.0
    missed_checks: int = 0

    def circuit(self, now: float) -> CircuitState:
        if self.open_until is None:
            return CircuitState.CLOSED
        return CircuitState.OPEN if now < self.open_until else CircuitState.HALF_OPEN

    @property
    def answers(self) -> bool:
        """Whether the last health checks found it."""
        return self.missed_checks < MISSED_CHECKS

    def may_pass(self, now: float) -> bool:
        """Whether how it answered requests allows another one."""
        if now < self.passed_over_until:
            return False
        return self.open_until is None or (now >= self.open_until and not self.trying)

    def available(self, now: float) -> bool:
        """Whether a request may be sent there now."""
        return self.answers and self.may_pass(now)

    def asked(self, now: float) -> None:
        """A request is sent there."""
        self.trying = self.circuit(now) is CircuitState.HALF_OPEN

    def succeeded(self) -> None:
        self.failures, self.open_until, self.open_s, self.trying = 0, None, FIRST_OPEN_S, False

    def failed(self, now: float, *, passed_over: bool = False) -> None:
        """It could not be reached (`passed_over`: leave it in peace for a second), broke off, or its engine is dead."""
        if passed_over:
            self.refused(now)
        self.failures += 1
        self.trying = False
        reopened = self.open_until is not None and now >= self.open_until
        if reopened:
            self.open_s = min(LONGEST_OPEN_S, 2 * self.open_s)
        if reopened or (self.open_until is None and self.failures >= FAILURES):
            self.open_until = now + self.open_s

    def gave_up(self) -> None:
        """Whoever asked has gone: nothing was learned."""
        self.trying = False

    def refused(self, now: float) -> None:
        """It takes no work just now: it drains, loads, or its queue is full."""
        self.trying = False
        self.passed_over_until = now + PASSED_OVER_S

    def checked(self, *, found: bool) -> None:
        """A health check found it, or did not."""
        self.missed_checks = 0 if found else self.missed_checks + 1


@dataclass(slots=True)
class RetryBudget:
    """How many requests may be sent again: a share of all, and a reserve for the moment in which a replica dies.

    Without it, retries of everything would double the load of a fleet that fails because it is overloaded.
    """

    share: float = 0.2
    reserve: float = 256.0
    left: float = 256.0

    def request(self) -> None:
        """A new request was taken."""
        self.left = min(self.reserve, self.left + self.share)

    def spend(self) -> bool:
        """Whether one more may be sent again."""
        if self.left < 1:
            return False
        self.left -= 1
        return True
