"""How many pods there should be, and which: scaling, replacement of what ended, and the next step of a rollout."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from kvasir_operator.api.v1alpha1 import InferenceServiceSpec
from kvasir_operator.planning.actions import Why
from kvasir_operator.planning.ordering import in_order_of_removal
from kvasir_operator.planning.rollout import Bounds, next_step
from kvasir_operator.planning.state import Pod, Snapshot, Stage, Timings


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A pod to be made."""

    why: Why
    attempt: int = 0
    replaces: str = ""
    products: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """Who comes, who goes, who is called back from draining, and which ended pods are cleared away."""

    create: tuple[Newcomer, ...] = ()
    remove: tuple[tuple[Pod, Why], ...] = ()
    recall: tuple[Pod, ...] = ()
    clear: tuple[Pod, ...] = ()
    due: datetime | None = None


def wanted_replicas(spec: InferenceServiceSpec) -> int:
    """`replicas`, kept within the bounds of `scaling` where that is given."""
    if spec.scaling is None:
        return spec.replicas
    return max(spec.scaling.min_replicas, min(spec.replicas, spec.scaling.max_replicas))


def decide(snapshot: Snapshot, spec: InferenceServiceSpec, now: datetime) -> Decision:
    """Compare the pods with the spec.

    - Pods that drain are called back before new ones are made.
    - What failed is replaced; after the first time only when its backoff is over. It is cleared away once the
      replacement exists, so that the count of attempts is never lost.
    - Surplus goes in the order of `ordering`; pods of old revisions as `rollout` says.
    """
    wanted = wanted_replicas(spec)
    staying = [pod for pod in snapshot.pods if pod.stays]
    new = [pod for pod in staying if pod.revision == snapshot.revision]
    old = [pod for pod in staying if pod.revision != snapshot.revision]
    draining = [pod for pod in snapshot.pods if pod.stage is Stage.DRAINING]
    recall = _to_recall(draining, snapshot.revision, wanted - len(new))
    new += recall
    step = next_step(new, old, len(draining) - len(recall), wanted, Bounds.of(spec.rollout))
    rolling = bool(old) or any(pod.revision != snapshot.revision for pod in draining)
    missing = step.create if rolling else max(0, wanted - len(new))
    create, due = _newcomers(snapshot, missing, rolling=rolling, now=now)
    surplus = in_order_of_removal(pod for pod in new if pod not in recall)[: max(0, len(new) - wanted)]
    return Decision(
        create=tuple(create),
        remove=(*((pod, Why.SCALE_DOWN) for pod in surplus), *((pod, Why.ROLLOUT) for pod in step.remove)),
        recall=tuple(recall),
        clear=tuple(_to_clear(snapshot, enough=len(new) >= wanted)),
        due=due,
    )


def _to_recall(draining: list[Pod], revision: str, missing: int) -> list[Pod]:
    """Pods whose drain is cancelled: of the right revision, with a live engine, the last to have begun first."""
    able = [pod for pod in draining if pod.revision == revision and pod.has_process]
    able.sort(key=lambda pod: (-_drain_start(pod), pod.name))
    return able[: max(0, missing)]


def _drain_start(pod: Pod) -> float:
    gate = pod.serving_gate
    return gate.since.timestamp() if gate is not None and gate.since is not None else 0.0


def _newcomers(
    snapshot: Snapshot, missing: int, *, rolling: bool, now: datetime
) -> tuple[list[Newcomer], datetime | None]:
    """The pods to make now, and when the next one may be made that has to wait."""
    failed = sorted(_failed(snapshot), key=lambda pod: (_failed_at(pod), pod.name))
    plain = max(0, missing - len(failed))
    why = Why.ROLLOUT if rolling else _why_plain(snapshot)
    create = [Newcomer(why)] * plain
    due: datetime | None = None
    for pod in failed[: missing - plain]:
        attempt = _attempts(pod, snapshot.timings)
        ready_at = _failed_at(pod) + backoff(attempt, snapshot.timings)
        if ready_at <= now:
            create.append(Newcomer(Why.REPLACE, attempt, pod.name))
        else:
            due = min(filter(None, (due, ready_at)))
    return create, due


def _why_plain(snapshot: Snapshot) -> Why:
    """A pod is replaced where one is on its way out or vanished against the last count, else it is a scale-up."""
    before = snapshot.status.desired_replicas
    wanted_more = before is None or snapshot.spec is None or wanted_replicas(snapshot.spec) > before
    return Why.SCALE_UP if wanted_more else Why.REPLACE


def backoff(attempt: int, timings: Timings) -> timedelta:
    """Wait before the `attempt`-th replacement in a row: none before the first, then 10 s, 20 s, … up to 300 s."""
    if attempt <= 1:
        return timedelta(0)
    return timedelta(seconds=min(timings.backoff_limit, timings.backoff_base * 2 ** (attempt - 2)))


def _attempts(pod: Pod, timings: Timings) -> int:
    """Replacements in a row, that of `pod` included; a pod that lived long starts the count anew."""
    lived = (_failed_at(pod) - pod.created_at).total_seconds()
    return 1 if lived >= timings.backoff_reset else pod.attempt + 1


def _failed(snapshot: Snapshot) -> list[Pod]:
    return [pod for pod in snapshot.pods if pod.stage is Stage.FINISHED and pod.revision == snapshot.revision]


def _failed_at(pod: Pod) -> datetime:
    """When the pod ended: its last container's end, else when it was made."""
    ends = [each.last_end.finished_at for each in pod.containers if each.last_end is not None]
    return max((end for end in ends if end is not None), default=pod.created_at)


def _to_clear(snapshot: Snapshot, *, enough: bool) -> list[Pod]:
    """Ended pods nobody needs any more: of old revisions, and all once enough others exist."""
    ended = [pod for pod in snapshot.pods if pod.stage is Stage.FINISHED]
    return [pod for pod in ended if enough or pod.revision != snapshot.revision]
