"""Speeds and latencies over the last seconds, for /admin/state and Retry-After. Time is an argument."""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

from kvasir_runtime.engine.messages import EngineStats

RATE_WINDOW_S: Final = 10.0
LATENCY_WINDOW_S: Final = 60.0
SAMPLE_INTERVAL_S: Final = 0.5
MAX_SAMPLES: Final = 4096
"""Latencies and answers remembered at most: at 500 requests a second those of the last 8 s."""
LEAST_PROMPT_SECONDS: Final = 0.02
"""Computing time from which a window tells the speed of prompts."""
MEAN_WEIGHT: Final = 0.02
"""Of each new value in a moving mean, which so speaks of the last fifty or so."""


@dataclass
class Rates:
    """Samples of the engine's counters, and times to first token."""

    _counts: deque[tuple[float, int, int, float]] = field(default_factory=deque)
    _first_tokens: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))

    _answers: deque[tuple[float, bool]] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))
    _prompt_speed: tuple[float, float] = (0.0, -math.inf)
    _token_s: tuple[float, float] = (0.0, -math.inf)
    _output_tokens: float = 0.0

    def sample(self, stats: EngineStats, now: float) -> None:
        """Remember the counters; call it every `SAMPLE_INTERVAL_S`."""
        self._counts.append((now, stats.prompt_tokens, stats.generation_tokens, stats.prompt_seconds))
        while now - self._counts[0][0] > RATE_WINDOW_S:
            self._counts.popleft()
        computing = self._counts[-1][3] - self._counts[0][3]
        if computing >= LEAST_PROMPT_SECONDS:
            self._prompt_speed = (self._counts[-1][1] - self._counts[0][1]) / computing, now

    def next_tokens(self, seconds: float, now: float) -> None:
        mean, measured = self._token_s
        self._token_s = _moved(mean if now - measured <= LATENCY_WINDOW_S else 0.0, seconds), now

    def finished(self, output_tokens: int) -> None:
        """A sequence has ended."""
        self._output_tokens = _moved(self._output_tokens, output_tokens)

    def answered(self, now: float, *, failed: bool) -> None:
        """A client has its answer, or an error of the server's."""
        self._answers.append((now, failed))
        _drop_old(self._answers, now)

    def answers(self, now: float) -> tuple[int, int]:
        """Requests of the last minute that were answered, and those that failed."""
        _drop_old(self._answers, now)
        failed = sum(failed for _, failed in self._answers)
        return len(self._answers) - failed, failed

    def prompt_speed(self, now: float) -> float | None:
        """Prompt tokens a second of the time spent on them; None when none was measured in the last minute."""
        return _fresh(self._prompt_speed, now)

    def token_s(self, now: float) -> float | None:
        """Moving mean of the seconds between two tokens of a sequence; None without any in the last minute."""
        return _fresh(self._token_s, now)

    def finished_per_s(self, seats: int, now: float) -> float | None:
        """Sequences that end in a second when all `seats` are taken, by the mean length of answers; None: unknown."""
        token_s = self.token_s(now)
        return seats / (self._output_tokens * token_s) if token_s and self._output_tokens else None

    def first_token(self, seconds: float, now: float) -> None:
        self._first_tokens.append((now, seconds))
        _drop_old(self._first_tokens, now)

    def prefill_per_s(self, now: float) -> float:
        return self._per_second(1, now)

    def decode_per_s(self, now: float) -> float:
        return self._per_second(2, now)

    def prefill_busy(self, now: float) -> float:
        """Share of the time that went into steps with prompts; a step is counted when it ends, so at most 1."""
        return min(1.0, self._per_second(3, now))

    def first_token_quantile(self, share: float, now: float) -> float | None:
        """Nearest-rank quantile in seconds over the last minute; None without requests."""
        _drop_old(self._first_tokens, now)
        values = sorted(seconds for _, seconds in self._first_tokens)
        return values[min(len(values) - 1, int(share * len(values)))] if values else None

    def _per_second(self, column: int, now: float) -> float:
        if not self._counts or now <= self._counts[0][0]:
            return 0.0
        return (self._counts[-1][column] - self._counts[0][column]) / (now - self._counts[0][0])


def _drop_old(samples: deque[tuple[float, Any]], now: float) -> None:
    while samples and now - samples[0][0] > LATENCY_WINDOW_S:
        samples.popleft()


def _moved(mean: float, value: float) -> float:
    return (1 - MEAN_WEIGHT) * mean + MEAN_WEIGHT * value if mean else value


def _fresh(measured: tuple[float, float], now: float) -> float | None:
    value, at = measured
    return value if value and now - at <= LATENCY_WINDOW_S else None
