"""Whether a rollout may surge: strategy Auto goes in place where no node has room for one more replica.

The scheduler decides that, not a count of ours: it knows taints, affinity, quotas and other people's pods. A new pod
for which it found no node for half a minute waits for room that only an old one can make.

| strategy | a new pod waits for room that an old one holds | then at most             |
|----------|------------------------------------------------|--------------------------|
| Surge    | any                                            | maxUnavailable may miss  |
| InPlace  | any                                            | at least one may miss, no surge |
| Auto     | no, or not for 30 s                            | maxUnavailable may miss  |
| Auto     | for 30 s                                       | at least one may miss    |

Replicas that only move off a cordoned node surge by one at least, and none is missing, whatever the strategy: what may
be missing is left to evictions.
"""

import re
from datetime import datetime, timedelta

from kvasir_operator.api.kubernetes import ResourceRequirements, parse_quantity
from kvasir_operator.api.v1alpha1 import InferenceServiceSpec
from kvasir_operator.planning.rollout import Bounds
from kvasir_operator.planning.state import Pod, Snapshot, Stage
from kvasir_operator.resources.template_hash import RevisionTemplate


def rollout_bounds(
    snapshot: Snapshot, spec: InferenceServiceSpec, new: list[Pod], old: list[Pod], now: datetime, *, moving: bool
) -> tuple[Bounds, datetime | None]:
    """The bounds of the next step, and when a pod that waits for room will have waited long enough.

    `moving` says that all the old pods are merely where they should not be.
    """
    bounds = Bounds.of(spec.rollout)
    if moving:
        return Bounds(max(1, bounds.max_surge), 0), None
    holders = {pod.revision for pod in old if pod.node and pod.node not in snapshot.cordoned}
    if spec.rollout.strategy == "Surge" or not holders:
        return bounds, None
    ends = [end for pod in new if (end := _patience_ends(pod, holders, snapshot)) is not None]
    stuck = sum(end <= now for end in ends)
    due = min((end for end in ends if end > now), default=None)
    if not stuck:
        return bounds, due
    return Bounds(bounds.max_surge, max(1, bounds.max_unavailable), max(0, stuck - bounds.max_surge)), due


def _patience_ends(pod: Pod, holders: set[str], snapshot: Snapshot) -> datetime | None:
    """Until when a pod is waited for that found no room; None for one that an old one's leaving would not help."""
    scheduled = pod.condition("PodScheduled")
    template = snapshot.template_of(pod.revision)
    if pod.stage is not Stage.STARTING or pod.node or scheduled.status != "False" or template is None:
        return None
    if not any(_makes_room(snapshot.template_of(holder), template, scheduled.message) for holder in holders):
        return None
    return (scheduled.since or pod.created_at) + timedelta(seconds=snapshot.timings.surge_patience)


def _makes_room(old: RevisionTemplate | None, new: RevisionTemplate, message: str) -> bool:
    """Whether a pod of `new` fits where one of `old` is: it may go there, and asks for no more of what is missing."""
    missing = re.findall(r"Insufficient ([a-z0-9./-]+[a-z0-9])", message)
    if old is None or not (missing or "Too many pods" in message):
        return False
    same_nodes = (old.node_selector, old.affinity, old.tolerations) == (
        new.node_selector,
        new.affinity,
        new.tolerations,
    )
    same_devices = old.accelerator is not None or new.accelerator is None
    asks = [(_requested(new.resources, name), _requested(old.resources, name)) for name in missing if name != "pods"]
    return same_nodes and same_devices and all(wanted <= held for wanted, held in asks)


def _requested(resources: ResourceRequirements, name: str) -> float:
    """How much a pod asks for; limits stand in for requests, as in Kubernetes."""
    amount = parse_quantity(resources.requests.get(name, resources.limits.get(name, 0)))
    return float(amount or 0)
