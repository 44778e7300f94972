"""What a run was worth: how often the objective was kept, and for how many replica-seconds."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from kvasir_operator.scaling.simulator.fleet import Course

MINUTE_S: Final = 60.0
SAME: Final = 0.001
"""Shares of requests that differ by less than this count as the same."""
QUANTILE: Final = 0.95
"""The objective speaks of 95 of 100 requests."""


@dataclass(frozen=True, slots=True)
class Result:
    """One policy with one setting over one trace. Shares of 1, seconds, replicas."""

    policy: str
    setting: str
    usual: bool
    in_time: float
    minutes: float
    ttft_p95: float
    replica_seconds: float
    mean_replicas: float
    most_replicas: int
    turns: int
    course: Course

    @property
    def label(self) -> str:
        return f"{self.policy} {self.setting}".strip()


def judge(
    course: Course, policy: str, setting: str, *, usual: bool, objective: float, begin: float, end: float
) -> Result:
    """Judge what came after `begin`: shares of requests, and of minutes by their p95, that kept the objective."""
    firsts = [(arrival, ttft) for arrival, ttft in course.first_tokens if arrival >= begin]
    minutes: defaultdict[int, list[float]] = defaultdict(list)
    for arrival, ttft in firsts:
        minutes[int(arrival / MINUTE_S)].append(ttft)
    kept = sum(quantile(ttfts) <= objective for ttfts in minutes.values())
    return Result(
        policy=policy,
        setting=setting,
        usual=usual,
        in_time=sum(ttft <= objective for _, ttft in firsts) / len(firsts),
        minutes=kept / len(minutes),
        ttft_p95=quantile([ttft for _, ttft in firsts]),
        replica_seconds=course.replica_seconds,
        mean_replicas=course.replica_seconds / (end - begin),
        most_replicas=max(course.present),
        turns=_turns(course.asked),
        course=course,
    )


def quantile(values: Iterable[float]) -> float:
    """Nearest rank."""
    found = sorted(values)
    return found[min(len(found) - 1, int(QUANTILE * len(found)))]


def best(results: Iterable[Result]) -> Result:
    """The one that was in time most often, to a tenth of a percent; of several, the cheapest."""
    found = list(results)
    most = max(result.in_time for result in found)
    return min((each for each in found if each.in_time >= most - SAME), key=lambda each: each.replica_seconds)


def cheapest_as_good(results: Iterable[Result], as_result: Result) -> Result | None:
    """The cheapest that was in time at least as often as `as_result`; None where none was."""
    found = [each for each in results if each.in_time >= as_result.in_time]
    return min(found, key=lambda each: each.replica_seconds, default=None)


def saving(result: Result, other: Result) -> float:
    """Share of the other's replica-seconds that `result` did without."""
    return 1 - result.replica_seconds / other.replica_seconds


def table(results: Sequence[Result]) -> str:
    """A Markdown table: for each policy its usual setting, and its best one in hindsight."""
    lines = [
        "| policy | setting | in time | minutes kept | TTFT p95 | mean replicas | most | changes of direction |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for policy in dict.fromkeys(result.policy for result in results):
        own = [result for result in results if result.policy == policy]
        usual, found = [result for result in own if result.usual], best(own)
        shown = [(each, "usual") for each in usual if each is not found] + [(found, "best" if len(own) > 1 else "")]
        lines += [_row(result, word) for result, word in shown]
    return "\n".join(lines)


def _row(result: Result, word: str) -> str:
    setting = ", ".join(part for part in (result.setting, word) if part) or "defaults"
    return (
        f"| {result.policy} | {setting} | {result.in_time:.2%} | {result.minutes:.1%} | {result.ttft_p95:.2f} s | "
        f"{result.mean_replicas:.2f} | {result.most_replicas} | {result.turns} |"
    )


def comparison(results: Sequence[Result], own: str) -> str:
    """One line: `own` against the best of the others, and against the cheapest that were in time as often."""
    mine = next(result for result in results if result.policy == own)
    others = [result for result in results if result.policy != own]
    top, equal = best(others), cheapest_as_good(others, mine)
    first = f"{own} {mine.in_time:.2%}, best of the others ({top.label}) {top.in_time:.2%}: {saving(mine, top):+.0%}"
    if equal is None:
        return f"{first} replica-seconds saved; none of the others was in time as often"
    return f"{first} replica-seconds saved; the cheapest as good ({equal.label}): {saving(mine, equal):+.0%}"


def _turns(asked: Sequence[int]) -> int:
    deltas = [after - before for before, after in pairwise(asked) if after != before]
    return sum(first * second < 0 for first, second in pairwise(deltas))
