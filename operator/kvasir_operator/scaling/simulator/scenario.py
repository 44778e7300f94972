"""One trace at one scale, and every policy on it.

Settings of the others are those that their users begin with (`usual`), and those that one finds who tunes them on one
course of traffic and keeps them for all others (`tuned`). A sweep tries all settings on the very trace that is judged:
nobody knows them beforehand, so it is a bound and no policy.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from kvasir_operator.scaling.policy import Policy
from kvasir_operator.scaling.simulator.fleet import Fleet, Scaler
from kvasir_operator.scaling.simulator.policies import Fixed, Hpa, Knative, Kvasir, kv_utilization, queue_length
from kvasir_operator.scaling.simulator.replica import Profile
from kvasir_operator.scaling.simulator.report import Kind, Result, judge
from kvasir_operator.scaling.simulator.traces import Request

KVASIR: Final = "Kvasir"
QUICK: Final = "Kvasir, quick down"
QUICK_DOWN_S: Final = 180.0
"""Twice the profiles' cold start instead of the default of 5 minutes, and as many a minute down as up."""
KV_TARGETS: Final = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75)
QUEUE_TARGETS: Final = (0.25, 0.5, 1.0, 4.0)
CONCURRENCY_TARGETS: Final = (8.0, 12.0, 16.0, 24.0, 100.0)
USUAL_KV, USUAL_QUEUE, USUAL_CONCURRENCY = 0.75, 4.0, 100.0
"""The share that Kvasir's own default aims at; what samples of KEDA with vLLM use; Knative's default."""
TUNED_KV, TUNED_QUEUE, TUNED_CONCURRENCY = 0.1, 0.25, 16.0
"""The cheapest of the settings above that had 99.5 % in time on the Azure trace at its own scale, 6 times its requests,
seed 11, on 8b-80g. That draw is for tuning; others are for judging."""
PEAK_S: Final = 300.0
PEAK_SHARE: Final = 0.99
"""Fixed at peak: the fewest with which 99 % of the requests of the worst five minutes are in time.

Where some prompts alone take longer than the objective, no number does; then 1 % fewer than with the most replicas.
"""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is replayed, on what, and by which objective it is judged. Seconds."""

    trace: Sequence[Request]
    profile: Profile
    objective: float
    most: int
    warm_s: float
    seed: int

    @property
    def end(self) -> float:
        return self.trace[-1].arrival


def run_one(scenario: Scenario, scaler: Scaler, setting: str, *, replicas: int, kind: Kind = Kind.TRIED) -> Result:
    """One policy with one setting, beginning with `replicas`."""
    fleet = Fleet(scenario.profile, scaler, replicas, scenario.warm_s, scenario.seed)
    course = fleet.run(scenario.trace)
    span = (scenario.warm_s, scenario.end)
    return judge(course, scaler.name, setting, kind=kind, objective=scenario.objective, span=span)


def run_all(scenario: Scenario, tell: Callable[[Result], None], *, sweep: bool = False) -> list[Result]:
    """All policies. Fixed at peak comes first: all others begin with as many. `sweep`: with all settings."""
    results = [fixed_at_peak(scenario)]
    peak = int(results[0].setting)
    tell(results[0])
    if sweep:
        for count in range(max(1, peak - 3), min(peak + 3, scenario.most) + 1):
            if count != peak:
                results.append(run_one(scenario, Fixed(count), str(count), replicas=count))
                tell(results[-1])
    for scaler, setting, kind in _scalers(scenario):
        if sweep or kind is not Kind.TRIED:
            results.append(run_one(scenario, scaler, setting, replicas=peak, kind=kind))
            tell(results[-1])
    return results


def fixed_at_peak(scenario: Scenario) -> Result:
    """The fewest replicas that keep the peak, found by halving."""
    found = run_one(scenario, Fixed(scenario.most), str(scenario.most), replicas=scenario.most, kind=Kind.PEAK)
    needed = PEAK_SHARE * _worst_share(found, scenario)
    work = sum(request.prompt for request in scenario.trace) * scenario.profile.prefill_s / scenario.end
    low = 1 if scenario.trace[0].blocks else max(1, math.floor(work))
    high = scenario.most
    while low < high:
        middle = (low + high) // 2
        tried = run_one(scenario, Fixed(middle), str(middle), replicas=middle, kind=Kind.PEAK)
        if _worst_share(tried, scenario) >= needed:
            high, found = middle, tried
        else:
            low = middle + 1
    return found


def _worst_share(result: Result, scenario: Scenario) -> float:
    """Share of the requests that were in time, in the worst five minutes."""
    spans: dict[int, list[bool]] = {}
    for arrival, ttft in result.course.first_tokens:
        if arrival >= scenario.warm_s:
            spans.setdefault(int(arrival / PEAK_S), []).append(ttft <= scenario.objective)
    return min(sum(kept) / len(kept) for kept in spans.values())


def _scalers(scenario: Scenario) -> Iterator[tuple[Scaler, str, Kind]]:
    bounds = (1, scenario.most)
    policy = Policy(min_replicas=1, max_replicas=scenario.most, ttft_s=scenario.objective)
    yield Kvasir(policy), "", Kind.USUAL
    quick = policy.model_copy(update={"down_window_s": QUICK_DOWN_S, "down_per_minute": policy.up_per_minute})
    yield Kvasir(quick, name=QUICK), f"{QUICK_DOWN_S:g} s", Kind.TUNED
    for target in KV_TARGETS:
        kind = _kind(target, USUAL_KV, TUNED_KV)
        yield Hpa("HPA on KV use", kv_utilization, target, bounds), f"{target:.0%}", kind
    for target in QUEUE_TARGETS:
        yield (
            Hpa("HPA on queue", queue_length, target, bounds),
            f"{target:g}",
            _kind(target, USUAL_QUEUE, TUNED_QUEUE),
        )
    for target in CONCURRENCY_TARGETS:
        yield Knative(target, bounds), f"{target:g}", _kind(target, USUAL_CONCURRENCY, TUNED_CONCURRENCY)


def _kind(target: float, usual: float, tuned: float) -> Kind:
    return Kind.USUAL if target == usual else Kind.TUNED if target == tuned else Kind.TRIED


__all__ = ["KVASIR", "QUICK", "Scenario", "fixed_at_peak", "run_all", "run_one"]
