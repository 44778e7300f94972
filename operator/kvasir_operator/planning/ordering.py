"""Which replica goes first. The one whose absence is felt least: not serving, else with the coldest cache."""

import math
from collections.abc import Iterable

from kvasir_operator.planning.state import Pod, Stage
from kvasir_runtime.contract.admin_api import AdminState

_RANK = {Stage.STARTING: 1, Stage.UNREADY: 2, Stage.SERVING: 3}


def in_order_of_removal(pods: Iterable[Pod]) -> list[Pod]:
    """Sort so that the first is the first to go.

    1. A pod that no node has taken, then one that starts, then one that lost its readiness, then one that serves.
    2. One that hands its prefixes over already, so that nobody does so in vain.
    3. The one with the least cache value (tokens its cache is expected to save), then with the fewest requests in
       flight. A pod that does not answer comes after those that do: its cache and requests are unknown, not zero.
    4. The youngest, then by name, so that planning again gives the same answer.
    """
    return sorted(pods, key=_felt_absence)


def _felt_absence(pod: Pod) -> tuple[int, bool, float, float, float, str]:
    rank = 0 if pod.stage is Stage.STARTING and not pod.node else _RANK.get(pod.stage, 0)
    value, inflight = _worth(pod)
    return rank, pod.handover is None, value, inflight, -pod.created_at.timestamp(), pod.name


def _worth(pod: Pod) -> tuple[float, float]:
    """Cache value in tokens, and requests in flight."""
    if not isinstance(pod.runtime, AdminState):
        return math.inf, math.inf
    return (pod.runtime.kv.value if pod.runtime.kv else 0.0), float(pod.runtime.inflight)
