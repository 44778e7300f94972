"""How soon to look at a service again when nobody calls: often while it moves, seldom while nothing happens. Pure."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from kvasir_operator.planning.state import Pod, Snapshot, Stage
from kvasir_runtime.contract.admin_api import AdminState

DRAIN_INTERVAL: Final = 0.5
"""Seconds between two looks at a pod that drains: its end is not told by any event."""
START_INTERVAL: Final = 1.0
"""Least seconds between two looks at a pod that starts. The kubelet tells when it is ready; this shows progress."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Bounds on the interval, in seconds: `busy_s` under load, `idle_s` when nothing happens."""

    busy_s: float
    idle_s: float


def next_interval(snapshot: Snapshot, before_s: float, pace: Pace, now: datetime) -> float:
    """Seconds until the next look; `before_s` is the interval before this look, which idleness doubles.

    A pod that has been starting for 100 s is looked at every 10 s, one that has just been made every second.
    """
    if any(pod.stage is Stage.DRAINING for pod in snapshot.pods):
        return DRAIN_INTERVAL
    starting = [pod for pod in snapshot.pods if pod.stage in (Stage.STARTING, Stage.UNREADY)]
    if starting:
        youngest = min((now - pod.created_at).total_seconds() for pod in starting)
        return max(START_INTERVAL, min(pace.idle_s, youngest / 10))
    if any(_is_busy(pod) for pod in snapshot.pods) or _waits_for_group(snapshot):
        return pace.busy_s
    return min(pace.idle_s, max(pace.busy_s, before_s * 2))


def is_at_rest(snapshot: Snapshot) -> bool:
    """Whether nothing is going to happen to the pods by time alone: all of them serve, and have nothing to do."""
    return all(pod.stage is Stage.SERVING and not _is_busy(pod) for pod in snapshot.pods) and not _waits_for_group(
        snapshot
    )


def _waits_for_group(snapshot: Snapshot) -> bool:
    """Devices that others let go are told by no event to those that have no pod."""
    return bool(snapshot.outlook.turn.message)


def _is_busy(pod: Pod) -> bool:
    return isinstance(pod.runtime, AdminState) and pod.runtime.inflight > 0
