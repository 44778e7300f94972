"""The fleet: requests come, a router spreads them, a policy watches and changes the number of replicas.

All policies get the same: the router (the longest cached prefix among replicas that are not overloaded, else the least
loaded one), the same cold starts, and drains that lose no request. A replica costs from its creation to its end.
"""

import random
from collections.abc import Sequence as Requests
from dataclasses import dataclass, field
from typing import Final, Protocol

from kvasir_operator.scaling.samples import Sample
from kvasir_operator.scaling.simulator.replica import Profile, Replica, Sequence
from kvasir_operator.scaling.simulator.traces import Request

OVERLOAD: Final = 1.25
"""A replica with more than this share of the mean load is not chosen for its cache."""
RECORD_S: Final = 5.0
"""Time between two points of the recorded course."""


@dataclass(frozen=True, slots=True)
class View:
    """What a policy sees: samples of the replicas that serve, how many start, and how many are asked for."""

    now: float
    samples: dict[str, Sample]
    running: int
    starting: int
    replicas: int


class Scaler(Protocol):
    """A policy. Asked every `interval_s` how many replicas there should be."""

    name: str
    interval_s: float
    takes_coldest: bool

    def desired(self, view: View) -> int:
        """Replicas from now on."""
        ...


@dataclass(slots=True)
class Course:
    """What happened: each request's arrival and TTFT, and points in time of demand, replicas and KV use."""

    first_tokens: list[tuple[float, float]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    demand: list[float] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    present: list[int] = field(default_factory=list)
    serving: list[int] = field(default_factory=list)
    kv_use: list[float] = field(default_factory=list)
    replica_seconds: float = 0.0
    hit_share: float = 0.0
    preemptions: int = 0


class Fleet:
    """One run of one policy over one trace."""

    def __init__(self, profile: Profile, scaler: Scaler, replicas: int, measure_from: float, seed: int) -> None:
        """Begin with `replicas` that serve; replica-seconds count from `measure_from`."""
        self._profile = profile
        self._scaler = scaler
        self._draw = random.Random(seed)  # noqa: S311 - draws cold starts, guards nothing
        self._measure_from = measure_from
        self._made = 0
        self._replicas: list[Replica] = []
        self._asked = 0
        self._held: list[Request] = []
        self._sequences: list[Sequence] = []
        self._gone: list[Replica] = []
        self.course = Course()
        self._resize(replicas, 0.0)
        for replica in self._replicas:
            replica.created_at, replica.ready_at = -profile.cold_start_s, 0.0

    def run(self, trace: Requests[Request]) -> Course:
        """Replay the whole trace, then let what runs come to its first token."""
        end = trace[-1].arrival
        next_look, next_record, prompts = 0.0, 0.0, 0
        for request in trace:
            while min(next_look, next_record) <= request.arrival:
                if next_record <= next_look:
                    self._record(next_record, prompts)
                    next_record, prompts = next_record + RECORD_S, 0
                else:
                    self._look(next_look)
                    next_look += self._scaler.interval_s
            self._route(request, request.arrival)
            prompts += request.prompt
        self._finish(end)
        return self.course

    def _look(self, now: float) -> None:
        self._advance(now)
        serving, staying = self._serving(now), [each for each in self._replicas if each.draining_since is None]
        samples = {each.name: each.sample(now) for each in serving}
        view = View(now, samples, sum(each.running for each in serving), len(staying) - len(serving), self._asked)
        self._resize(self._scaler.desired(view), now)

    def _resize(self, replicas: int, now: float) -> None:
        staying = [each for each in self._replicas if each.draining_since is None]
        self._asked = replicas
        for _ in range(replicas - len(staying)):
            self._made += 1
            start = self._profile.cold_start_s * self._draw.uniform(0.9, 1.2)
            self._replicas.append(Replica(f"replica-{self._made}", self._profile, now, now + start, now=now))
        surplus = max(0, len(staying) - replicas)
        for victim in sorted(staying, key=lambda each: self._felt_absence(each, now))[:surplus]:
            victim.draining_since = now

    def _felt_absence(self, replica: Replica, now: float) -> tuple[bool, float, float]:
        """Those that start first; then the coldest cache and the least work, or, as a ReplicaSet does, the youngest."""
        serves = replica.ready_at <= now
        if self._scaler.takes_coldest:
            return serves, float(len(replica.cache)), float(replica.running + len(replica.waiting))
        return serves, -replica.created_at, 0.0

    def _serving(self, now: float) -> list[Replica]:
        return [each for each in self._replicas if each.draining_since is None and each.ready_at <= now]

    def _advance(self, now: float, *, all_of_them: bool = True) -> None:
        """Bring replicas on; only those at which something happened, where a few tokens' decode do not matter."""
        for replica in self._replicas:
            if replica.ready_at <= now and (all_of_them or replica.wakes_at <= now):
                replica.now = max(replica.now, replica.ready_at)
                replica.advance(now)
        drained = [each for each in self._replicas if each.draining_since is not None and each.idle]
        for replica in drained:
            self._replicas.remove(replica)
            self._pay(replica, max(replica.draining_since or 0.0, min(replica.now, now)))
        if self._held and self._serving(now):
            held, self._held = self._held, []
            for request in held:
                self._route(request, now)

    def _pay(self, replica: Replica, end: float) -> None:
        self.course.replica_seconds += max(0.0, end - max(replica.created_at, self._measure_from))
        self._gone.append(replica)

    def _route(self, request: Request, now: float) -> None:
        self._advance(now, all_of_them=False)
        serving = self._serving(now)
        if not serving:
            self._held.append(request)
            return
        chosen = min(serving, key=lambda each: each.load)
        if request.blocks:
            limit = OVERLOAD * (sum(each.load for each in serving) / len(serving) + request.prompt)
            fit = [each for each in serving if each.load <= limit]
            warmest = max(fit or serving, key=lambda each: (each.cached_tokens(request), -each.load))
            chosen = warmest if warmest.cached_tokens(request) > 0 else chosen
        chosen.advance(now)
        self._sequences.append(chosen.add(request))

    def _record(self, now: float, prompts: int) -> None:
        self._advance(now)
        course, serving = self.course, self._serving(now)
        course.times.append(now)
        course.demand.append(prompts / RECORD_S)
        course.asked.append(self._asked)
        course.present.append(len(self._replicas))
        course.serving.append(len(serving))
        used = sum(each.kv_active for each in serving)
        course.kv_use.append(used / (len(serving) * self._profile.kv_tokens) if serving else 0.0)

    def _finish(self, end: float) -> None:
        for replica in self._replicas:
            self._pay(replica, end)
        latest = max((each.ready_at for each in self._replicas), default=end)
        self._advance(max(end, latest))
        for replica in self._replicas:
            replica.advance(float("inf"))
        self.course.first_tokens = [
            (each.request.arrival, each.first_token_at - each.request.arrival)
            for each in self._sequences
            if each.first_token_at is not None
        ]
        assert len(self.course.first_tokens) == len(self._sequences), "a request never got its first token"
        assert not self._held, "a request never reached a replica"
        queries = sum(each.queries for each in self._gone)
        self.course.hit_share = sum(each.hits for each in self._gone) / queries if queries else 0.0
        self.course.preemptions = sum(each.preemptions for each in self._gone)
