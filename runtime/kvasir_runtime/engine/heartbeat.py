"""Whether the engine lives, judged from its heartbeats. Pure: time is an argument.

| what happens                         | heartbeats | step's age | CPU time | verdict                    |
|--------------------------------------|------------|------------|----------|----------------------------|
| idle, full queue, paused client      | come       | 0 or small | -        | alive                      |
| a prefill of two minutes in one step | come       | grows      | grows    | alive                      |
| process stopped, dead or wedged      | stop       | -          | -        | dead within 20 s           |
| step waits for what never comes      | come       | grows      | stands   | dead within 20 s           |
| step spins for ever                  | come       | grows      | grows    | dead after 10 minutes      |
| still loading                        | may stop   | -          | -        | alive: start-up has its own probe |
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from kvasir_runtime.engine.messages import Heartbeat

SILENCE_LIMIT_S: Final = 18.0
"""Heartbeats come every second; after this long without one the process is stopped or wedged: known within 20 s."""

STANDSTILL_LIMIT_S: Final = 18.0
"""A step this old, in which the process used no CPU, waits for something that will not come: known within 20 s."""

STANDSTILL_CPU_S: Final = 0.2
"""CPU seconds that count as none: heartbeats alone use about 0.01 s in that time."""

STEP_LIMIT_S: Final = 600.0
"""A step computes at most max_num_batched_tokens; five times the longest prefill anybody was seen to wait for."""


@dataclass(frozen=True)
class Verdict:
    alive: bool
    heartbeat_age_s: float
    message: str = ""


@dataclass
class HeartbeatMonitor:
    """Remembers the last heartbeats. `started` is when the engine became ready (seconds of a monotonic clock)."""

    started: float | None = None
    _last: float = 0.0
    _step_seconds: float = 0.0
    _cpu_seconds: deque[tuple[float, float]] = field(default_factory=deque)

    def ready(self, now: float) -> None:
        """The model is loaded: from here on silence counts."""
        self.started = self._last = now

    def observe(self, beat: Heartbeat, now: float) -> None:
        self._last = now
        self._step_seconds = beat.step_seconds
        self._cpu_seconds.append((now, beat.cpu_seconds))
        while len(self._cpu_seconds) > 1 and now - self._cpu_seconds[1][0] >= STANDSTILL_LIMIT_S:
            self._cpu_seconds.popleft()

    def step_finished(self, now: float) -> None:
        self._last = now
        self._step_seconds = 0.0

    def judge(self, now: float) -> Verdict:
        """Say whether the engine lives at `now`, by the table above."""
        if self.started is None:
            return Verdict(alive=True, heartbeat_age_s=0.0, message="loading")
        age = now - self._last
        if age > SILENCE_LIMIT_S:
            return _dead(age, f"no heartbeat for {age:.0f} s: the engine process is stopped or stuck")
        if self._step_seconds > STEP_LIMIT_S:
            return _dead(age, f"one step has run for {self._step_seconds:.0f} s, the limit is {STEP_LIMIT_S:.0f} s")
        if self._step_seconds > STANDSTILL_LIMIT_S and self._cpu_used(now) < STANDSTILL_CPU_S:
            return _dead(age, f"a step has run for {self._step_seconds:.0f} s and uses no CPU: it is stuck")
        return Verdict(alive=True, heartbeat_age_s=age)

    def _cpu_used(self, now: float) -> float:
        """CPU seconds used over the remembered window; unknown (a window shorter than the limit) counts as busy."""
        if not self._cpu_seconds or now - self._cpu_seconds[0][0] < STANDSTILL_LIMIT_S:
            return float("inf")
        return self._cpu_seconds[-1][1] - self._cpu_seconds[0][1]


def _dead(age: float, message: str) -> Verdict:
    return Verdict(alive=False, heartbeat_age_s=age, message=message)
