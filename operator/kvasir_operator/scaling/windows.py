"""What scaling remembers between looks: each replica's last sample, the fleet's recent demand, recent recommendations.

All of it may be lost when the operator ends: the windows then fill anew, and until the one for scaling down is full
nothing is taken away. What was learned of a replica's speed is kept in the service's status.

Times are seconds on any clock that only rises.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import hypot, sqrt
from statistics import median, stdev
from typing import Final

from kvasir_operator.scaling.samples import Sample

STALE_AFTER_S: Final = 30.0
"""A replica that has been silent for so long counts as unknown. Six readings in a row failed."""
LEVEL_S: Final = 60.0
"""Demand is the mean over this long: a few requests more or less are not worth a replica."""
EARLIER_S: Final = 180.0
"""Growth is the present level against that of the time between this long ago and `LEVEL_S` ago."""
LOOK_S: Final = 1.0
"""Looks that follow each other faster than this count as one: a moment with many events weighs no more than others."""
LEARNING_RATE: Final = 0.005
"""Share of what is known of a replica's speed that a reading replaces: 8 replicas read every 5 s renew it in 2 min."""
SATURATED_S: Final = 10.0
"""How long requests must have waited without a break before a replica's speed is its limit; the engine's own window."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Demand of all replicas that answer: KV tokens that are held or waited for, prompt tokens to compute a second."""

    kv_tokens: float = 0.0
    prompt_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """The replicas as last seen. `silent` ones serve and do not answer; capacity and TTFT are means of a replica."""

    answering: int
    silent: int
    now: Totals
    waiting: int
    queued_tokens: int
    ttft_p95_s: float | None
    kv_capacity: float | None


@dataclass(slots=True)
class _Replica:
    """One process of one pod."""

    sample: Sample
    seen_at: float
    hit_share: float = 0.0
    waits_since: float | None = None
    news: bool = True

    def take_in(self, sample: Sample, now: float) -> None:
        self.news = sample != self.sample
        queries = sample.queries - self.sample.queries
        if queries > 0:
            self.hit_share = max(0.0, min(1.0, (sample.hits - self.sample.hits) / queries))
        if sample.waiting == 0:
            self.waits_since = None
        elif self.waits_since is None:
            self.waits_since = now
        self.sample, self.seen_at = sample, now

    @property
    def computed_per_s(self) -> float:
        """Prompt tokens that it computes a second: those found in its cache cost nothing."""
        return self.sample.prompt_per_s * (1 - self.hit_share)


@dataclass(slots=True)
class Speed:
    """Prompt tokens computed in a busy second: a mean that forgets, weighted by the time that was busy."""

    tokens: float = 0.0
    busy: float = 0.0

    def learn(self, tokens_per_s: float, busy: float) -> None:
        """Take in one reading of a replica: its rate, and the share of the time that it was busy."""
        self.tokens += tokens_per_s - LEARNING_RATE * self.tokens
        self.busy += busy - LEARNING_RATE * self.busy

    @property
    def per_s(self) -> float | None:
        """None before anything was computed."""
        return self.tokens / self.busy if self.busy > 0 else None


@dataclass(slots=True)
class Memory:
    """What is remembered of one service. Changed by `observe` and `recommended` alone."""

    cold_start_s: float | None = None
    _speed: Speed = field(default_factory=Speed)
    _replicas: dict[str, _Replica] = field(default_factory=dict)
    _history: deque[tuple[float, Totals]] = field(default_factory=deque)
    _backlog: deque[tuple[float, int]] = field(default_factory=deque)
    _recommended: deque[tuple[float, int, int]] = field(default_factory=deque)

    @property
    def prompt_capacity(self) -> float | None:
        """Prompt tokens that a replica computes in a second if it does nothing else; None: not known yet."""
        return self._speed.per_s

    def recall_speed(self, per_s: float | None) -> None:
        """Begin with a speed that was learned before, if none is known yet; new readings soon outweigh it."""
        if per_s is not None and self._speed.busy == 0:
            self._speed.learn(per_s, 1.0)

    def observe(self, samples: Mapping[str, Sample | None], now: float) -> Fleet:
        """Take in what each serving replica (by pod uid) says, None where it does not answer; returns the fleet.

        A replica that is not among them, or whose process is another, is forgotten with all it said.
        """
        for uid in self._replicas.keys() - samples.keys():
            del self._replicas[uid]
        for uid, sample in samples.items():
            self._take_in(uid, sample, now)
        answering = [each for each in self._replicas.values() if now - each.seen_at <= STALE_AFTER_S]
        self._learn(answering, now)
        fleet = self._fleet(answering, len(samples), now)
        if answering:
            if self._history and now - self._history[-1][0] < LOOK_S:
                self._history.pop()
            self._history.append((now, fleet.now))
            _forget(self._history, now - EARLIER_S)
        return fleet

    def level(self, now: float) -> Totals:
        """Mean demand over the last `LEVEL_S`."""
        return _mean(totals for time, totals in self._history if now - time < LEVEL_S)

    def noise(self, now: float) -> Totals:
        """Standard errors of the difference between `level` and `earlier`, by which it would differ by chance.

        Readings follow each other faster than the engines' rates change: each `SATURATED_S` counts as one.
        """
        parts = self._parts(now)
        return Totals(
            hypot(*(_error([each.kv_tokens for _, each in part], _span(part)) for part in parts)),
            hypot(*(_error([each.prompt_per_s for _, each in part], _span(part)) for part in parts)),
        )

    def earlier(self, now: float) -> Totals | None:
        """Mean demand over the time before that; None where it was not observed for long enough to be compared."""
        older = [(time, totals) for time, totals in self._history if LEVEL_S <= now - time <= EARLIER_S]
        if not older or now - older[0][0] < (LEVEL_S + EARLIER_S) / 2:
            return None
        return _mean(totals for _, totals in older)

    def _parts(self, now: float) -> tuple[list[tuple[float, Totals]], list[tuple[float, Totals]]]:
        level = [each for each in self._history if now - each[0] < LEVEL_S]
        return level, [each for each in self._history if LEVEL_S <= now - each[0] <= EARLIER_S]

    def recommended(self, now: float, least: int, most: int, window_s: float) -> None:
        """Remember what was just asked for: at least and at most so many replicas. Keeps `window_s` of it."""
        self._recommended.append((now, least, most))
        while len(self._recommended) > 1 and self._recommended[1][0] <= now - window_s:
            self._recommended.popleft()

    def lowest(self, now: float, window_s: float) -> int | None:
        """Fewest replicas that growing demand asked for in the window; None where that is not known for all of it."""
        return min((least for _, least, _ in self._within(now, window_s)), default=None)

    def highest(self, now: float, window_s: float) -> int | None:
        """Most replicas that were asked for in the window; None where that is not known for all of it."""
        return max((most for _, _, most in self._within(now, window_s)), default=None)

    def _within(self, now: float, window_s: float) -> list[tuple[float, int, int]]:
        """What was asked for since the window began, and what held at that moment; nothing if it is not covered."""
        if not self._recommended or self._recommended[0][0] > now - window_s:
            return []
        begin = max(time for time, _, _ in self._recommended if time <= now - window_s)
        return [each for each in self._recommended if each[0] >= begin]

    def _take_in(self, uid: str, sample: Sample | None, now: float) -> None:
        known = self._replicas.get(uid)
        if sample is None:
            return
        if known is None or known.sample.boot != sample.boot:
            waits_since = now if sample.waiting else None
            hit_share = sample.hits / sample.queries if sample.queries else 0.0
            self._replicas[uid] = _Replica(sample, now, hit_share, waits_since)
        else:
            known.take_in(sample, now)

    def _learn(self, answering: list[_Replica], now: float) -> None:
        """How many prompt tokens a replica computes in a second that it spends on prompts, and how long one starts.

        An engine that does not tell its busy time is learned from while requests wait at it: then it is busy all of it.
        """
        for each in answering:
            saturated = each.waits_since is not None and now - each.waits_since >= SATURATED_S
            busy = each.sample.prompt_busy if each.sample.prompt_busy is not None else float(saturated)
            if each.news and each.seen_at == now and busy > 0 and each.computed_per_s > 0:
                self._speed.learn(each.computed_per_s, busy)
        starts = [each.sample.cold_start_s for each in answering if each.sample.cold_start_s is not None]
        if starts:
            self.cold_start_s = median(starts)

    def _fleet(self, answering: list[_Replica], serving: int, now: float) -> Fleet:
        samples = [each.sample for each in answering]
        queued = sum(sample.queued_tokens for sample in samples)
        computed = sum(each.computed_per_s for each in answering)
        firsts = [sample.ttft_p95_s for sample in samples if sample.ttft_p95_s is not None]
        return Fleet(
            answering=len(samples),
            silent=serving - len(samples),
            now=Totals(
                kv_tokens=float(sum(sample.kv_active for sample in samples) + queued),
                prompt_per_s=max(0.0, computed + self._queue_growth(queued, now)),
            ),
            waiting=sum(sample.waiting for sample in samples),
            queued_tokens=queued,
            ttft_p95_s=sum(firsts) / len(firsts) if firsts else None,
            kv_capacity=sum(sample.kv_capacity for sample in samples) / len(samples) if samples else None,
        )

    def _queue_growth(self, queued: int, now: float) -> float:
        """Tokens a second by which the queues grow: what comes in is what is computed and that."""
        self._backlog.append((now, queued))
        _forget(self._backlog, now - SATURATED_S)
        since, before = self._backlog[0]
        return (queued - before) / (now - since) if now > since else 0.0


def _forget(entries: deque[tuple[float, Totals]] | deque[tuple[float, int]], before: float) -> None:
    while entries and entries[0][0] < before:
        entries.popleft()


def _span(part: list[tuple[float, Totals]]) -> float:
    return part[-1][0] - part[0][0] if part else 0.0


def _error(values: list[float], span_s: float) -> float:
    """Standard error of the mean of values that were read over so many seconds."""
    if len(values) < 2:
        return 0.0
    independent = max(1.0, min(float(len(values)), span_s / SATURATED_S))
    return stdev(values) / sqrt(independent)


def _mean(totals: Iterable[Totals]) -> Totals:
    found = list(totals)
    if not found:
        return Totals()
    return Totals(
        sum(each.kv_tokens for each in found) / len(found), sum(each.prompt_per_s for each in found) / len(found)
    )
