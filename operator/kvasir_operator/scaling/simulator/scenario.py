"""One trace at one scale, and every policy on it: as usual, and with the setting that was best in hindsight."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from kvasir_operator.scaling.policy import Policy
from kvasir_operator.scaling.simulator.fleet import Fleet, Scaler
from kvasir_operator.scaling.simulator.policies import Fixed, Hpa, Knative, Kvasir, kv_utilization, queue_length
from kvasir_operator.scaling.simulator.replica import Profile
from kvasir_operator.scaling.simulator.report import Result, judge
from kvasir_operator.scaling.simulator.traces import Request

KVASIR: Final = "Kvasir"
KV_TARGETS: Final = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75)
QUEUE_TARGETS: Final = (0.25, 0.5, 1.0, 4.0)
CONCURRENCY_TARGETS: Final = (8.0, 12.0, 16.0, 24.0, 100.0)
USUAL_KV, USUAL_QUEUE, USUAL_CONCURRENCY = 0.75, 4.0, 100.0
"""The share that Kvasir's own default aims at; what samples of KEDA with vLLM use; Knative's default."""
PEAK_S: Final = 300.0
PEAK_SHARE: Final = 0.99
"""Fixed at peak: the fewest with which 99 % of the requests of the worst five minutes are in time."""


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


def run_one(scenario: Scenario, scaler: Scaler, setting: str, *, replicas: int, usual: bool) -> Result:
    """One policy with one setting, beginning with `replicas`."""
    fleet = Fleet(scenario.profile, scaler, replicas, scenario.warm_s, scenario.seed)
    course = fleet.run(scenario.trace)
    return judge(
        course,
        scaler.name,
        setting,
        usual=usual,
        objective=scenario.objective,
        begin=scenario.warm_s,
        end=scenario.end,
    )


def run_all(scenario: Scenario, tell: Callable[[Result], None]) -> list[Result]:
    """All policies. Fixed at peak comes first: all others begin with as many."""
    results = fixed_results(scenario, tell)
    peak = next((int(each.setting) for each in results if each.usual), scenario.most)
    for scaler, setting, usual in _scalers(scenario):
        results.append(run_one(scenario, scaler, setting, replicas=peak, usual=usual))
        tell(results[-1])
    return results


def fixed_results(scenario: Scenario, tell: Callable[[Result], None]) -> list[Result]:
    """From what the mean load needs up to three more than fixed at peak."""
    work = sum(request.prompt for request in scenario.trace) * scenario.profile.prefill_s / scenario.end
    results: list[Result] = []
    for count in range(max(1, math.floor(work)), scenario.most + 1):
        usual = any(result.usual for result in results)
        found = run_one(scenario, Fixed(count), str(count), replicas=count, usual=False)
        if not usual and _keeps_peak(found, scenario):
            found = replace(found, usual=True)
        results.append(found)
        tell(found)
        if sum(int(result.setting) > _peak(results) for result in results) >= 3:
            break
    return results


def _peak(results: Sequence[Result]) -> int:
    return next((int(result.setting) for result in results if result.usual), 1_000_000)


def _keeps_peak(result: Result, scenario: Scenario) -> bool:
    """Whether 99 % of each five minutes were in time."""
    spans: dict[int, list[bool]] = {}
    for arrival, ttft in result.course.first_tokens:
        if arrival >= scenario.warm_s:
            spans.setdefault(int(arrival / PEAK_S), []).append(ttft <= scenario.objective)
    return all(sum(kept) >= PEAK_SHARE * len(kept) for kept in spans.values())


def _scalers(scenario: Scenario) -> Iterator[tuple[Scaler, str, bool]]:
    bounds = (1, scenario.most)
    yield Kvasir(Policy(min_replicas=1, max_replicas=scenario.most, ttft_s=scenario.objective)), "", True
    for target in KV_TARGETS:
        yield Hpa("HPA on KV use", kv_utilization, target, bounds), f"{target:.0%}", target == USUAL_KV
    for target in QUEUE_TARGETS:
        yield Hpa("HPA on queue", queue_length, target, bounds), f"{target:g}", target == USUAL_QUEUE
    for target in CONCURRENCY_TARGETS:
        yield Knative(target, bounds), f"{target:g}", target == USUAL_CONCURRENCY


__all__ = ["KVASIR", "Scenario", "fixed_results", "run_all", "run_one"]
