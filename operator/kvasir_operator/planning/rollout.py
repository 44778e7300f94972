"""How replicas of an old revision give way to a new one. Pure: counts and pods in, counts and pods out.

For `wanted` replicas, of which `max_unavailable` may be missing and beside which `max_surge` may exist:

- New pods are made while fewer than `quota` exist (`wanted`, or the share of a canary) and all pods together, those
  that drain included, stay within `wanted + max_surge`: a pod that drains still holds its accelerator.
- An old pod that never served, or that the kubelet keeps from starting again, goes at once: nobody misses it, and it
  may hold the accelerator that a new one waits for.
- An old pod that serves goes only when at least `wanted - max_unavailable` others serve, and `keep` old ones stay.
- An old pod that lost its readiness may come back: it goes when enough others serve.
- While the new revision is not to be trusted with all (`mend`: a canary, or new pods that fail), what is missing below
  `wanted - max_unavailable` is made of the old revision.

Worked example, 2 replicas, surge 1, unavailable 0: OO → OON (starting) → OON (serving), one O drains → ON, drained pod
gone → ONN (starting) → NN.
"""

from dataclasses import dataclass

from kvasir_operator.api.v1alpha1 import RolloutSpec
from kvasir_operator.planning.failures import failure_of
from kvasir_operator.planning.ordering import in_order_of_removal
from kvasir_operator.planning.state import Pod, Stage


@dataclass(frozen=True, slots=True)
class Bounds:
    """Replicas above and below the wanted count that a rollout may use.

    `short` replicas cannot exist for want of room: they are not waited for.
    """

    max_surge: int
    max_unavailable: int
    short: int = 0

    @classmethod
    def of(cls, spec: RolloutSpec) -> "Bounds":
        """In place is no surge and at least one missing; with neither, nothing could ever move, so one may surge."""
        if spec.strategy == "InPlace":
            return cls(0, max(1, spec.max_unavailable))
        if spec.max_surge == 0 and spec.max_unavailable == 0:
            return cls(1, 0)
        return cls(spec.max_surge, spec.max_unavailable)


@dataclass(frozen=True, slots=True)
class Step:
    """The next step of a rollout: how many new pods to make, and which old ones to let go.

    `mend` replicas are missing that are to be of the old revision; pods for `room` of them may be made.
    """

    create: int
    remove: tuple[Pod, ...]
    mend: int = 0
    room: int = 0


def next_step(
    new: list[Pod],
    old: list[Pod],
    draining: int,
    wanted: int,
    bounds: Bounds,
    *,
    quota: int | None = None,
    keep: int = 0,
    mend: bool = False,
) -> Step:
    """Decide the next step for `new` and `old` pods that stay, beside `draining` others on their way out."""
    able = sum(not fails(pod) for pod in new)
    least = max(0, wanted - bounds.short - bounds.max_unavailable)
    useless = [pod for pod in old if pod.stage is Stage.STARTING or pod.in_crash_loop]
    if mend:
        useless = in_order_of_removal(useless)[: max(0, len(old) + able - wanted)]
    serving = sum(pod.stage is Stage.SERVING for pod in [*new, *old])
    others = [pod for pod in old if pod not in useless]
    spared = _spared(others, serving - least)[: max(0, len(others) - keep)]
    leaving = [*useless, *spared]
    room = wanted + bounds.max_surge - len(new) - len(old) - draining + _gone_at_once(leaving)
    create = max(0, min((wanted if quota is None else min(quota, wanted)) - len(new), room))
    missing = least - (len(old) - len(leaving)) - able - create if mend else 0
    return Step(create=create, remove=tuple(leaving), mend=max(0, missing), room=max(0, room - create))


def fails(pod: Pod) -> bool:
    """Whether a pod that does not serve has failed where it runs; one that waits for a node has not."""
    failed = pod.in_crash_loop or failure_of(pod) is not None
    return failed and bool(pod.node) and pod.stage is not Stage.SERVING


def _spared(old: list[Pod], spare: int) -> list[Pod]:
    """Old pods that may go when `spare` more serve than must."""
    chosen: list[Pod] = []
    for pod in in_order_of_removal(old):
        cost = 1 if pod.stage is Stage.SERVING else 0
        if spare < cost or spare < 0:
            break
        spare -= cost
        chosen.append(pod)
    return chosen


def _gone_at_once(pods: list[Pod]) -> int:
    """Pods that need no drain, since no request ever reached them."""
    return sum(pod.stage is Stage.STARTING for pod in pods)
