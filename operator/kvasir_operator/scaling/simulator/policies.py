"""The policies that are compared, each as its own project describes it. None is told anything that another is not.

- Kvasir: the very code that the operator runs (`scaling.evaluate`).
- HPA (autoscaling/v2): a mean over pods against a target; 15 s; tolerance 0.1; pods that start count as 0 on the way
  up; at most 4 pods or 100 % more in 15 s; the highest recommendation of the stabilisation window on the way down. Its
  metrics are exact and fresh here: there is no Prometheus in between that would delay them.
- Knative's autoscaler: mean concurrency over 60 s against a target, and over 6 s in panic, which begins when that
  asks for twice what serves and ends after 60 s without; 2 s; never down in panic; at most halved at once.
- Fixed: as many as it is told.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from kvasir_operator.scaling.evaluate import evaluate
from kvasir_operator.scaling.policy import Policy
from kvasir_operator.scaling.recommender import Changes
from kvasir_operator.scaling.samples import Sample
from kvasir_operator.scaling.simulator.fleet import View
from kvasir_operator.scaling.windows import Memory

MINUTE_S: Final = 60.0


@dataclass(slots=True)
class Kvasir:
    """The operator's own decisions, every 5 s as it reads its pods."""

    policy: Policy
    name: str = "Kvasir"
    interval_s: float = 5.0
    takes_coldest: bool = True
    memory: Memory = field(default_factory=Memory)
    _changes: deque[tuple[float, int]] = field(default_factory=deque)
    _added_at: float | None = None

    def desired(self, view: View) -> int:
        while self._changes and self._changes[0][0] <= view.now - MINUTE_S:
            self._changes.popleft()
        deltas = [delta for _, delta in self._changes]
        changes = Changes(
            added=sum(delta for delta in deltas if delta > 0),
            removed=-sum(delta for delta in deltas if delta < 0),
            added_ago_s=view.now - self._added_at if self._added_at is not None else None,
        )
        found = evaluate(self.memory, view.samples, self.policy, view.replicas, changes, view.now)
        if found.changes:
            self._changes.append((view.now, found.decision.to - view.replicas))
            self._added_at = view.now if found.decision.to > view.replicas else self._added_at
        return found.decision.to


def kv_utilization(sample: Sample) -> float:
    return sample.kv_active / sample.kv_capacity


def queue_length(sample: Sample) -> float:
    return float(sample.waiting)


@dataclass(slots=True)
class Hpa:
    """A HorizontalPodAutoscaler on the mean of `metric`."""

    name: str
    metric: Callable[[Sample], float]
    target: float
    bounds: tuple[int, int]
    down_window_s: float = 300.0
    tolerance: float = 0.1
    interval_s: float = 15.0
    takes_coldest: bool = False
    _recommended: deque[tuple[float, int]] = field(default_factory=deque)
    _added: deque[tuple[float, int]] = field(default_factory=deque)

    def desired(self, view: View) -> int:
        asked = self._asked(view)
        if not self._recommended:  # as its controller does when it starts
            self._recommended.append((view.now, view.replicas))
        self._recommended.append((view.now, asked))
        while self._recommended[0][0] < view.now - self.down_window_s:
            self._recommended.popleft()
        if asked < view.replicas:
            asked = min(view.replicas, max(count for _, count in self._recommended))
        if asked > view.replicas:
            asked = min(asked, self._up_limit(view))
            self._added.append((view.now, asked - view.replicas))
        return max(self.bounds[0], min(asked, self.bounds[1]))

    def _asked(self, view: View) -> int:
        if not view.samples:
            return view.replicas
        total, ready = sum(self.metric(sample) for sample in view.samples.values()), len(view.samples)
        ratio = total / ready / self.target
        if abs(ratio - 1) <= self.tolerance:
            return view.replicas
        if view.starting == 0 or ratio < 1:
            return math.ceil(ratio * ready - 1e-9)
        everyone = ready + view.starting
        ratio = total / everyone / self.target
        if ratio <= 1 + self.tolerance:
            return view.replicas
        return math.ceil(ratio * everyone - 1e-9)

    def _up_limit(self, view: View) -> int:
        """4 pods or 100 % in 15 s, whichever is more, counted from what there was 15 s ago."""
        while self._added and self._added[0][0] <= view.now - self.interval_s:
            self._added.popleft()
        before = view.replicas - sum(count for _, count in self._added)
        return max(before + 4, before * 2)


@dataclass(slots=True)
class Knative:
    """Knative's concurrency autoscaler; `target` is requests at a replica, of which 70 % are aimed at as by default."""

    target: float
    bounds: tuple[int, int]
    name: str = "Knative concurrency"
    interval_s: float = 2.0
    takes_coldest: bool = False
    stable_s: float = 60.0
    panic_s: float = 6.0
    _seen: deque[tuple[float, float]] = field(default_factory=deque)
    _panic_at: float | None = None
    _panic_most: int = 0

    def desired(self, view: View) -> int:
        if not view.samples:
            return view.replicas
        concurrency = float(view.running + sum(sample.waiting for sample in view.samples.values()))
        self._seen.append((view.now, concurrency))
        while self._seen[0][0] <= view.now - self.stable_s:
            self._seen.popleft()
        ready, aim = len(view.samples), 0.7 * self.target
        stable = self._mean(view.now, self.stable_s) / aim
        panic = self._mean(view.now, self.panic_s) / aim
        least, most = math.floor(ready / 2), ready * 1000
        wanted_stable = max(least, min(math.ceil(stable - 1e-9), most))
        wanted_panic = max(least, min(math.ceil(panic - 1e-9), most))
        return max(self.bounds[0], min(self._choose(view.now, ready, wanted_stable, wanted_panic), self.bounds[1]))

    def _choose(self, now: float, ready: int, stable: int, panic: int) -> int:
        if panic >= 2 * ready:
            if self._panic_at is None:
                self._panic_most = ready
            self._panic_at = now
        elif self._panic_at is not None and now >= self._panic_at + self.stable_s:
            self._panic_at, self._panic_most = None, 0
        if self._panic_at is None:
            return stable
        self._panic_most = max(self._panic_most, panic, stable)
        return self._panic_most

    def _mean(self, now: float, window_s: float) -> float:
        values = [value for time, value in self._seen if time > now - window_s]
        return sum(values) / len(values)


@dataclass(slots=True)
class Fixed:
    """Always as many."""

    replicas: int
    name: str = "Fixed"
    interval_s: float = 3600.0
    takes_coldest: bool = False

    def desired(self, view: View) -> int:
        del view
        return self.replicas
