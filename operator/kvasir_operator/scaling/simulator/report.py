"""What a run was worth: how often the objective was kept, and for how many replica-seconds."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Final

from kvasir_operator.scaling.simulator.fleet import Course

MINUTE_S: Final = 60.0
SAME: Final = 0.001
"""Shares of requests that differ by less than this count as the same."""
QUANTILE: Final = 0.95
"""The objective speaks of 95 of 100 requests."""


FEWER: Final = 0.15
"""Share of the best other policy's replica-seconds that Kvasir is to do without, in time as often."""


class Kind(StrEnum):
    """How a setting was chosen."""

    USUAL = "usual"
    TUNED = "tuned elsewhere"
    PEAK = "at peak"
    TRIED = "in hindsight"


@dataclass(frozen=True, slots=True)
class Result:
    """One policy with one setting over one trace. Shares of 1, seconds, replicas."""

    policy: str
    setting: str
    kind: Kind
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
    course: Course, policy: str, setting: str, *, kind: Kind, objective: float, span: tuple[float, float]
) -> Result:
    """Judge what came in `span`: shares of requests, and of minutes by their p95, that kept the objective."""
    begin, end = span
    firsts = [(arrival, ttft) for arrival, ttft in course.first_tokens if arrival >= begin]
    minutes: defaultdict[int, list[float]] = defaultdict(list)
    for arrival, ttft in firsts:
        minutes[int(arrival / MINUTE_S)].append(ttft)
    kept = sum(quantile(ttfts) <= objective for ttfts in minutes.values())
    return Result(
        policy=policy,
        setting=setting,
        kind=kind,
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
    """A Markdown table: each policy with its usual and tuned settings, and its best in hindsight where it was tried."""
    lines = [
        "| policy | setting | in time | minutes kept | TTFT p95 | mean replicas | most | changes of direction |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for policy in dict.fromkeys(result.policy for result in results):
        own = [result for result in results if result.policy == policy]
        shown = [result for result in own if result.kind is not Kind.TRIED or result is best(own)]
        lines += [_row(result) for result in shown]
    return "\n".join(lines)


def _row(result: Result) -> str:
    setting = f"{result.setting}, {result.kind}" if result.setting else "defaults"
    return (
        f"| {result.policy} | {setting} | {result.in_time:.2%} | {result.minutes:.1%} | {result.ttft_p95:.2f} s | "
        f"{result.mean_replicas:.2f} | {result.most_replicas} | {result.turns} |"
    )


def rivals(results: Iterable[Result], own: str) -> list[Result]:
    """The others whose settings one can know beforehand; `own` with other settings is none of them."""
    return [each for each in results if not _is_own(each, own) and each.kind is not Kind.TRIED]


def _is_own(result: Result, own: str) -> bool:
    return result.policy.partition(",")[0] == own.partition(",")[0]


def goal_met(results: Sequence[Result], own: str) -> bool:
    """Whether `own` was in time as often as the best of its rivals (`SAME`), with `FEWER` replica-seconds at least."""
    mine, top = next(result for result in results if result.policy == own), best(rivals(results, own))
    return mine.in_time >= top.in_time - SAME and saving(mine, top) >= FEWER


def comparison(results: Sequence[Result], own: str) -> str:
    """One line: `own` against the best of the others, and against the cheapest that were in time as often."""
    mine = next(result for result in results if result.policy == own)
    others = [result for result in results if not _is_own(result, own)]
    top, equal = best(rivals(results, own)), cheapest_as_good(others, mine)
    first = f"{own} {mine.in_time:.2%}, best of the others ({top.label}) {top.in_time:.2%}: {saving(mine, top):+.0%}"
    met = "met" if goal_met(results, own) else "missed"
    if equal is None:
        return f"{first} replica-seconds saved, goal {met}; none of the others was in time as often"
    found = f"({equal.label}, {equal.kind}): {saving(mine, equal):+.0%}"
    return f"{first} replica-seconds saved, goal {met}; the cheapest as good {found}"


def summary(runs: Sequence[tuple[str, Sequence[Result]]], owns: Sequence[str]) -> str:
    """A Markdown table of many runs: share in time and mean replicas of each policy, and what each of `owns` saved."""
    named = list(
        dict.fromkeys(_column(result) for _, results in runs for result in results if result.kind is not Kind.TRIED)
    )
    goals = [f"{own}: saved, goal" for own in owns]
    lines = [f"| run | {' | '.join([*named, *goals])} |", "|---" * (1 + len(named) + len(goals)) + "|"]
    for name, results in runs:
        found = {_column(result): f"{result.in_time:.2%}, {result.mean_replicas:.2f}" for result in results}
        cells = [name, *(found.get(each, "-") for each in named), *(_goal(results, own) for own in owns)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _goal(results: Sequence[Result], own: str) -> str:
    mine, top = next(result for result in results if result.policy == own), best(rivals(results, own))
    return f"{saving(mine, top):+.0%} of {top.policy}, {'met' if goal_met(results, own) else 'missed'}"


def _column(result: Result) -> str:
    setting = f" {result.setting}" if result.setting and result.kind is not Kind.PEAK else ""
    return f"{result.policy}{setting}, {result.kind}" if result.setting else result.policy


def _turns(asked: Sequence[int]) -> int:
    deltas = [after - before for before, after in pairwise(asked) if after != before]
    return sum(first * second < 0 for first, second in pairwise(deltas))
