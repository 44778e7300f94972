"""Warm caches in the plan: what a new replica computes first, what is collected, and what one that goes hands over.

| warmup asked for | the last warmup of the process | time is over | required | the gate `kvasir.dev/warm`     |
|------------------|--------------------------------|--------------|----------|--------------------------------|
| no               | any                            | any          | any      | opens: NothingToWarm           |
| yes              | ended as it should             | any          | any      | opens: Warmed                  |
| yes              | ended for want of time         | any          | no       | opens: WarmupTimedOut          |
| yes              | none, or it has not ended      | yes          | no       | opens: WarmupTimedOut          |
| yes              | failed                         | yes          | no       | opens: WarmupFailed            |
| yes              | none                           | no           | any      | stays closed, one begins       |
| yes              | failed, or for want of time    | no           | any      | stays closed, one begins again |
| yes              | it has not ended               | no           | any      | stays closed                   |
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from kvasir_operator.api.model import WarmupFromTraffic, WarmupSpec
from kvasir_operator.planning.actions import HandOverPrefixes, KeepPrefixes, ServingPod, WarmUp, Why
from kvasir_operator.planning.gates import Step, is_open_for, waiting_since
from kvasir_operator.planning.state import HandOver, Pod, Snapshot, Stage, Warming
from kvasir_operator.resources import names
from kvasir_runtime.contract.admin_api import AdapterReports, AdminState, WarmupEnd

WARMING: Final = "Warming"
"""Reason on the gate of a pod that is being warmed; its time is when that began."""
RETRY_BASE_S: Final = 2.0
"""Wait after the first failure of a warmup; doubled each time."""
RETRY_LIMIT_S: Final = 60.0
HANDED_OVER_FOR: Final = timedelta(minutes=2)
"""How long a hand-over counts: what a pod learned afterwards, because it was needed again, is handed over anew."""


def warm_step(pod: Pod, spec: WarmupSpec | None, boot_id: str, grace_s: float, now: datetime) -> Step:
    """Whether the gate may open: the first line of the table above that holds."""
    if is_open_for(pod, names.WARM_GATE, boot_id):
        return Step(done=True)
    if spec is None:
        return Step(done=True, reason="NothingToWarm")
    last = _last(pod, boot_id)
    if last is not None and is_well(last):
        return Step(done=True, reason="Warmed", note=last.words)
    since = _since(pod, boot_id)
    deadline = since + timedelta(seconds=spec.timeout.seconds + grace_s) if since is not None else None
    out_of_time = last is not None and last.result is not None
    if not spec.required and (out_of_time or (deadline is not None and now >= deadline)):
        failed = last is not None and bool(last.error)
        return Step(done=True, reason="WarmupFailed" if failed else "WarmupTimedOut", note=_words(last))
    return Step(done=False, reason=WARMING, due=deadline if not spec.required else None)


def is_well(warming: Warming) -> bool:
    """Whether it ended as it should: all was computed, or all that the token budget allows."""
    if warming.ended_at is None or warming.error:
        return False
    return warming.result is None or warming.result.ended is not WarmupEnd.TIME_BUDGET


def _last(pod: Pod, boot_id: str) -> Warming | None:
    return pod.warming if pod.warming is not None and pod.warming.boot_id == boot_id else None


def _since(pod: Pod, boot_id: str) -> datetime | None:
    """Since when the gate waits for a warmup; None where it waits for something else."""
    if pod.condition(names.WARM_GATE).reason != WARMING:
        return None
    return waiting_since(pod, names.WARM_GATE, boot_id)


def _words(last: Warming | None) -> str:
    return (last.error or last.words or "the engine has not answered") if last is not None else "it has not begun"


@dataclass(frozen=True, slots=True)
class WarmthWork:
    """What is begun now, and when to look again at the latest."""

    actions: tuple[WarmUp | KeepPrefixes, ...] = ()
    due: datetime | None = None


def keep_warm(snapshot: Snapshot, now: datetime) -> WarmthWork:
    """Warm the pods whose gates wait for that, and collect what is asked of those that serve."""
    spec = snapshot.spec.warmup if snapshot.spec is not None else None
    if spec is None:
        return WarmthWork()
    found = [_warm_up(pod, spec, now) for pod in snapshot.pods if pod.stays]
    actions: list[WarmUp | KeepPrefixes] = [action for action, _ in found if action is not None]
    dues = [due for _, due in found]
    collect, collect_due = _collect(snapshot, now) if spec.from_traffic is not None else (None, None)
    actions += [collect] if collect is not None else []
    return WarmthWork(tuple(actions), min((due for due in [*dues, collect_due] if due is not None), default=None))


def _warm_up(pod: Pod, spec: WarmupSpec, now: datetime) -> tuple[WarmUp | None, datetime | None]:
    """The next warmup of a pod, or when it is time for it."""
    runtime = pod.runtime
    since = _since(pod, runtime.boot_id) if pod.serves_now and isinstance(runtime, AdminState) else None
    if since is None or not isinstance(runtime, AdminState):
        return None, None
    last = _last(pod, runtime.boot_id)
    if last is not None and last.ended_at is None:
        return None, None
    if last is not None and not is_well(last):
        wait = min(RETRY_LIMIT_S, RETRY_BASE_S * 2.0 ** min(max(last.failures, 1) - 1, 30))
        again = (last.ended_at or now) + timedelta(seconds=wait)
        if now < again:
            return None, again
    elif last is not None:
        return None, None
    left = (since + timedelta(seconds=spec.timeout.seconds) - now).total_seconds()
    timeout_s = max(1.0, spec.timeout.seconds if spec.required else left)
    why = Why.RETRY if last is not None else Why.READY
    served = _adapters(pod)
    return WarmUp(pod.name, pod.uid, pod.ip, runtime.boot_id, runtime.tokenizer_digest, served, timeout_s, why), None


def _adapters(pod: Pod) -> frozenset[str]:
    reports = pod.adapters.adapters if isinstance(pod.adapters, AdapterReports) else []
    return frozenset(report.name for report in reports if report.digest)


def _collect(snapshot: Snapshot, now: datetime) -> tuple[KeepPrefixes | None, datetime | None]:
    """Once a minute, where anything was computed since the last time."""
    pods = [pod for pod in snapshot.pods if pod.stage is Stage.SERVING and _query_tokens(pod)]
    basis = frozenset(
        (pod.uid, pod.runtime.boot_id, _query_tokens(pod)) for pod in pods if isinstance(pod.runtime, AdminState)
    )
    before = snapshot.collected
    if not basis or (before is not None and before.basis == basis):
        return None, None
    due = before.at + timedelta(seconds=snapshot.timings.collect_every) if before is not None else now
    if now < due:
        return None, due
    return KeepPrefixes(tuple(map(_serving, pods)), basis), None


def _query_tokens(pod: Pod) -> int:
    return pod.runtime.kv.query_tokens if isinstance(pod.runtime, AdminState) and pod.runtime.kv is not None else 0


def _serving(pod: Pod) -> ServingPod:
    tokenizer = pod.runtime.tokenizer_digest if isinstance(pod.runtime, AdminState) else ""
    return ServingPod(pod.name, pod.ip, pod.revision, tokenizer)


@dataclass(frozen=True, slots=True)
class Delay:
    """A replica that may not leave yet, since it hands its prefixes over; the action begins that."""

    action: HandOverPrefixes | None = None
    due: datetime | None = None


def hand_over_first(pod: Pod, why: Why, staying: Iterable[Pod], snapshot: Snapshot, now: datetime) -> Delay | None:
    """What keeps a replica that a scale-down takes away from leaving; None: nothing.

    It serves on while it hands over, for `Timings.hand_over` at most; the others are given its prefixes by then.
    """
    if why is not Why.SCALE_DOWN or _traffic(snapshot) is None or not _can_be_asked(pod):
        return None
    survivors = [each for each in staying if each.uid != pod.uid and _can_be_asked(each) and _alike(each, pod)]
    if not survivors:
        return None
    limit = timedelta(seconds=snapshot.timings.hand_over)
    last = _lately(pod.handover, now)
    if last is None:
        begin = HandOverPrefixes(
            pod.name, pod.uid, _serving(pod), tuple(map(_serving, survivors)), limit.total_seconds(), why
        )
        return Delay(begin, now + limit)
    done = last.ended_at is not None or now >= last.begun_at + limit
    return None if done else Delay(due=last.begun_at + limit)


def _traffic(snapshot: Snapshot) -> WarmupFromTraffic | None:
    spec = snapshot.spec.warmup if snapshot.spec is not None else None
    return spec.from_traffic if spec is not None else None


def _lately(last: HandOver | None, now: datetime) -> HandOver | None:
    if last is None or (last.ended_at is not None and now >= last.ended_at + HANDED_OVER_FOR):
        return None
    return last


def _can_be_asked(pod: Pod) -> bool:
    return pod.stage is Stage.SERVING and pod.serves_now


def _alike(one: Pod, other: Pod) -> bool:
    """Whether token ids mean the same to both."""
    mine, theirs = _serving(one).tokenizer, _serving(other).tokenizer
    return bool(mine) and mine == theirs
