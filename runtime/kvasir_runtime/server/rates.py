"""Speeds and latencies over the last seconds, for /admin/state and Retry-After. Time is an argument."""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from kvasir_runtime.engine.messages import EngineStats

RATE_WINDOW_S: Final = 10.0
LATENCY_WINDOW_S: Final = 60.0
SAMPLE_INTERVAL_S: Final = 0.5
MAX_SAMPLES: Final = 4096
"""Latencies remembered at most: at 500 requests a second those of the last 8 s."""


@dataclass
class Rates:
    """Samples of the engine's counters, and times to first token."""

    _counts: deque[tuple[float, int, int, float]] = field(default_factory=deque)
    _first_tokens: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))

    def sample(self, stats: EngineStats, now: float) -> None:
        """Remember the counters; call it every `SAMPLE_INTERVAL_S`."""
        self._counts.append((now, stats.prompt_tokens, stats.generation_tokens, stats.prompt_seconds))
        while now - self._counts[0][0] > RATE_WINDOW_S:
            self._counts.popleft()

    def first_token(self, seconds: float, now: float) -> None:
        self._first_tokens.append((now, seconds))
        self._forget_old(now)

    def prefill_per_s(self, now: float) -> float:
        return self._per_second(1, now)

    def decode_per_s(self, now: float) -> float:
        return self._per_second(2, now)

    def prefill_busy(self, now: float) -> float:
        """Share of the time that went into steps with prompts; a step is counted when it ends, so at most 1."""
        return min(1.0, self._per_second(3, now))

    def first_token_quantile(self, share: float, now: float) -> float | None:
        """Nearest-rank quantile in seconds over the last minute; None without requests."""
        self._forget_old(now)
        values = sorted(seconds for _, seconds in self._first_tokens)
        return values[min(len(values) - 1, int(share * len(values)))] if values else None

    def _per_second(self, column: int, now: float) -> float:
        if not self._counts or now <= self._counts[0][0]:
            return 0.0
        return (self._counts[-1][column] - self._counts[0][column]) / (now - self._counts[0][0])

    def _forget_old(self, now: float) -> None:
        while self._first_tokens and now - self._first_tokens[0][0] > LATENCY_WINDOW_S:
            self._first_tokens.popleft()
