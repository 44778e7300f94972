"""How many pods there should be, and which: scaling, replacement of what ended, and the next step of a rollout."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from kvasir_operator.api.v1alpha1 import InferenceServiceSpec
from kvasir_operator.planning.actions import Why
from kvasir_operator.planning.ordering import in_order_of_removal
from kvasir_operator.planning.revisions import Heading, fallback
from kvasir_operator.planning.rollout import Bounds, fails, next_step
from kvasir_operator.planning.room import rollout_bounds
from kvasir_operator.planning.state import Pod, Snapshot, Stage, Timings
from kvasir_operator.planning.trial import canary_replicas, canary_step


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A pod to be made, of `revision`."""

    revision: str
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


def least_available(spec: InferenceServiceSpec) -> int:
    """Replicas that evictions must leave: those that are wanted, less `rollout.maxUnavailable`."""
    return max(0, wanted_replicas(spec) - spec.rollout.max_unavailable)


def decide(snapshot: Snapshot, spec: InferenceServiceSpec, now: datetime) -> Decision:
    """Compare the pods with the spec.

    - Pods that drain are called back before new ones are made.
    - What failed is replaced; after the first time only when its backoff is over. It is cleared away once the
      replacement exists, so that the count of attempts is never lost.
    - Surplus goes in the order of `ordering`; pods of old revisions, and those on nodes that are being drained, as
      `rollout` says.
    """
    groups = _Groups.of(snapshot, spec)
    wanted = wanted_replicas(spec)
    bounds, room_due = rollout_bounds(snapshot, spec, groups.new, groups.old, now, moving=groups.moving)
    quota, keep, back = _trial(snapshot, spec, groups, bounds, wanted)
    recall = _to_recall([pod for pod in groups.draining if groups.fits(pod)], quota - len(groups.new))
    new, draining = [*groups.new, *recall], len(groups.draining) - len(recall)
    step = next_step(new, groups.old, draining, wanted, bounds, quota=quota, keep=keep, mend=bool(back))
    rolling = bool(groups.old) or any(not groups.fits(pod) for pod in groups.draining)
    create, due = _newcomers(
        snapshot, groups.revision, step.create if rolling else max(0, wanted - len(new)), groups.why(snapshot), now
    )
    mended = _to_recall([pod for pod in groups.draining if pod.revision == back], step.mend)
    more, more_due = _newcomers(snapshot, back, min(step.room, step.mend - len(mended)), Why.REPLACE, now)
    surplus = in_order_of_removal(groups.new)[: max(0, len(new) - wanted)]
    return Decision(
        create=(*create, *more),
        remove=(*((pod, Why.SCALE_DOWN) for pod in surplus), *((pod, groups.why_leave(pod)) for pod in step.remove)),
        recall=(*recall, *mended),
        clear=tuple(_to_clear(snapshot, {groups.revision, back}, enough=len(new) >= wanted)),
        due=min((each for each in (due, more_due, room_due) if each is not None), default=None),
    )


@dataclass(frozen=True, slots=True)
class _Groups:
    """The pods by where they are going: `new` as they are to be, `old` to be replaced; newcomers are of `revision`."""

    new: list[Pod]
    old: list[Pod]
    draining: list[Pod]
    revision: str
    heading: Heading
    held: bool
    cordoned: frozenset[str]

    @classmethod
    def of(cls, snapshot: Snapshot, spec: InferenceServiceSpec) -> "_Groups":
        target = snapshot.target
        revision = _revision_while_paused(snapshot, target.name) if spec.rollout.paused else target.name
        made = cls([], [], [], revision, target.heading, spec.rollout.paused, snapshot.cordoned)
        for pod in snapshot.pods:
            if pod.stays:
                (made.new if made.fits(pod) else made.old).append(pod)
            elif pod.stage is Stage.DRAINING:
                made.draining.append(pod)
        return made

    def fits(self, pod: Pod) -> bool:
        """Whether it is as it is to be: of the right revision, or any while paused, and on a node that stays."""
        return (self.held or pod.revision == self.revision) and pod.node not in self.cordoned

    @property
    def moving(self) -> bool:
        """Whether pods are replaced, and none of them but for the node that it is on."""
        return bool(self.old) and all(self.why_leave(pod) is Why.NODE_DRAIN for pod in self.old)

    def why(self, snapshot: Snapshot) -> Why:
        """Why newcomers are made."""
        moved = [pod for pod in (*self.old, *self.draining) if not self.fits(pod)]
        if not moved:
            return _why_plain(snapshot)
        return self.why_leave(next((pod for pod in moved if pod.revision != self.revision), moved[0]))

    def why_leave(self, pod: Pod) -> Why:
        """Why a pod has to go that is not as it is to be."""
        if self.held or pod.revision == self.revision:
            return Why.NODE_DRAIN
        return Why.ROLLOUT if self.heading is Heading.SPEC else Why.ROLLBACK


def _revision_while_paused(snapshot: Snapshot, target: str) -> str:
    """What a replica is made of while the rollout is paused: the revision that served before, if it still does."""
    back = fallback(target, snapshot.history, snapshot.live_revisions)
    return back.name if back is not None and any(pod.revision == back.name for pod in snapshot.pods) else target


def _trial(
    snapshot: Snapshot, spec: InferenceServiceSpec, groups: _Groups, bounds: Bounds, wanted: int
) -> tuple[int, int, str]:
    """Most replicas of the new revision, least of the old ones, and the old revision that fills gaps, or nothing."""
    back = fallback(groups.revision, snapshot.history, snapshot.live_revisions)
    if groups.held or back is None or back.name not in {pod.revision for pod in _serving(groups.old)}:
        return wanted, 0, ""
    found = canary_step(snapshot, spec)
    if found is not None:
        quota = canary_replicas(found[1], wanted)
        surges = bounds.max_surge > bounds.max_unavailable
        return quota, max(int(surges), wanted - quota), back.name
    failing = not _serving(groups.new) and any(fails(pod) for pod in groups.new)
    return (min(wanted, len(groups.new)), 0, back.name) if failing else (wanted, 0, "")


def _serving(pods: list[Pod]) -> list[Pod]:
    return [pod for pod in pods if pod.stage is Stage.SERVING]


def _to_recall(draining: list[Pod], missing: int) -> list[Pod]:
    """Pods whose drain is cancelled: with a live engine, the last to have begun first."""
    able = [pod for pod in draining if pod.has_process]
    able.sort(key=lambda pod: (-_drain_start(pod), pod.name))
    return able[: max(0, missing)]


def _drain_start(pod: Pod) -> float:
    gate = pod.serving_gate
    return gate.since.timestamp() if gate is not None and gate.since is not None else 0.0


def _newcomers(
    snapshot: Snapshot, revision: str, missing: int, why: Why, now: datetime
) -> tuple[list[Newcomer], datetime | None]:
    """The pods to make now, and when the next one may be made that has to wait."""
    failed = sorted(_failed(snapshot, revision), key=lambda pod: (_failed_at(pod), pod.name))
    plain = max(0, missing - len(failed))
    create = [Newcomer(revision, why)] * plain
    due: datetime | None = None
    for pod in failed[: max(0, missing - plain)]:
        attempt = _attempts(pod, snapshot.timings)
        ready_at = _failed_at(pod) + backoff(attempt, snapshot.timings)
        if ready_at <= now:
            create.append(Newcomer(revision, Why.REPLACE, attempt, pod.name))
        else:
            due = min(filter(None, (due, ready_at)))
    return create, due


def _why_plain(snapshot: Snapshot) -> Why:
    """A pod is replaced where one is on its way out or vanished against the last count, else it is a scale-up.

    Where none was there at the last look, as while the model was looked at, nothing can be replaced.
    """
    before = snapshot.status.desired_replicas
    wanted_more = before is None or snapshot.spec is None or wanted_replicas(snapshot.spec) > before
    return Why.SCALE_UP if wanted_more or snapshot.status.replicas == 0 else Why.REPLACE


def backoff(attempt: int, timings: Timings) -> timedelta:
    """Wait before the `attempt`-th replacement in a row: none before the first, then 10 s, 20 s, … up to 300 s."""
    if attempt <= 1:
        return timedelta(0)
    return timedelta(seconds=min(timings.backoff_limit, timings.backoff_base * 2 ** (attempt - 2)))


def _attempts(pod: Pod, timings: Timings) -> int:
    """Replacements in a row, that of `pod` included; a pod that lived long starts the count anew."""
    lived = (_failed_at(pod) - pod.created_at).total_seconds()
    return 1 if lived >= timings.backoff_reset else pod.attempt + 1


def _failed(snapshot: Snapshot, revision: str) -> list[Pod]:
    return [pod for pod in snapshot.pods if pod.stage is Stage.FINISHED and pod.revision == revision]


def _failed_at(pod: Pod) -> datetime:
    """When the pod ended: its last container's end, else when it was made."""
    ends = [each.last_end.finished_at for each in pod.containers if each.last_end is not None]
    return max((end for end in ends if end is not None), default=pod.created_at)


def _to_clear(snapshot: Snapshot, made: set[str], *, enough: bool) -> list[Pod]:
    """Ended pods nobody needs any more: of revisions that are not made now, and all once enough others exist."""
    ended = [pod for pod in snapshot.pods if pod.stage is Stage.FINISHED]
    return [pod for pod in ended if enough or pod.revision not in made]
