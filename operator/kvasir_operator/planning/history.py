"""What is noted on the revisions of a service: which the spec asks for, how its trial goes, and which are forgotten."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from kvasir_operator.api.base import format_time
from kvasir_operator.api.v1alpha1 import InferenceServiceSpec
from kvasir_operator.planning.actions import (
    CompareGoldens,
    DropRevision,
    KeepRevision,
    MarkRevision,
    RevisionAction,
    Why,
)
from kvasir_operator.planning.revisions import Revision, RevisionFailure, fallback
from kvasir_operator.planning.state import Pod, Snapshot, Stage
from kvasir_operator.planning.trial import (
    MARKS_OF_A_TRIAL,
    canary_replicas,
    canary_step,
    judge,
    on_trial,
    reference_pod,
    waits_for_goldens,
    watched_until,
)
from kvasir_operator.resources import names

Marks = Mapping[str, str | None]


def keep_history(
    snapshot: Snapshot, spec: InferenceServiceSpec, wanted: int, now: datetime
) -> tuple[list[RevisionAction], datetime | None]:
    """What is to be written, one action a revision, and when something comes due."""
    if snapshot.template is None:
        return [], None
    due = _due(snapshot, spec, wanted, now)
    noted = _ask_for(snapshot, now) or _note_progress(snapshot, spec, wanted, now)
    others = [
        MarkRevision(each.name, each.uid, {names.PROGRESS_ANNOTATION: None}, Why.NOT_ASKED_FOR)
        for each in snapshot.history
        if each.asked and each.name != snapshot.revision
    ]
    marked = {each.revision for each in noted}
    forgotten = [DropRevision(each.name, each.uid) for each in _surplus(snapshot, spec) if each.name not in marked]
    return [*noted, *(each for each in others if each.revision not in marked), *forgotten], due


def _ask_for(snapshot: Snapshot, now: datetime) -> list[RevisionAction]:
    """Keep the revision that the spec asks for; one that was asked for before gets a new number and a new trial."""
    current, last = snapshot.current, max((each.number for each in snapshot.history), default=0)
    since = {names.PROGRESS_ANNOTATION: format_time(now)}
    if current is None:
        return [KeepRevision(snapshot.revision, last + 1, since)]
    if current.asked:
        return []
    marks: Marks = dict.fromkeys(MARKS_OF_A_TRIAL) | since
    number = last + 1 if current.number < last else None
    return [MarkRevision(current.name, current.uid, marks, Why.ASKED_FOR, number)]


def _note_progress(snapshot: Snapshot, spec: InferenceServiceSpec, wanted: int, now: datetime) -> list[RevisionAction]:
    target = snapshot.target.revision
    if target is not None and target.served_at is None and _complete(snapshot, spec, target, wanted, now):
        marks: Marks = {names.SERVED_ANNOTATION: format_time(now), names.FAILURE_ANNOTATION: None}
        return [MarkRevision(target.name, target.uid, marks, Why.COMPLETE)]
    tried = on_trial(snapshot)
    if tried is None:
        return []
    found = (
        _pause(tried, now, paused=spec.rollout.paused or wanted == 0)
        or _failure(tried, judge(snapshot, spec, wanted, now).failure)
        or _canary(snapshot, spec, tried, wanted, now)
    )
    return [found] if found is not None else list(_goldens(snapshot, spec, tried))


def _complete(snapshot: Snapshot, spec: InferenceServiceSpec, target: Revision, wanted: int, now: datetime) -> bool:
    """Whether all replicas are of the revision, those that found a node serve, and there is nothing left to try."""
    staying = [pod for pod in snapshot.pods if pod.stays]
    placed = [pod for pod in staying if pod.node]
    whole = len(staying) >= wanted > 0 and all(pod.revision == target.name for pod in staying)
    serving = bool(placed) and all(pod.stage is Stage.SERVING for pod in placed)
    watched = watched_until(snapshot, spec)
    return whole and serving and canary_step(snapshot, spec) is None and (watched is None or now >= watched)


def _pause(tried: Revision, now: datetime, *, paused: bool) -> MarkRevision | None:
    """Note a pause, so that the deadline counts anew when it is over. With no replicas nothing can get on either."""
    if paused and not tried.paused:
        return MarkRevision(tried.name, tried.uid, {names.PAUSED_ANNOTATION: "true"}, Why.PAUSED)
    if tried.paused and not paused:
        marks: Marks = {names.PAUSED_ANNOTATION: None, names.PROGRESS_ANNOTATION: format_time(now)}
        return MarkRevision(tried.name, tried.uid, marks, Why.RESUMED)
    return None


def _failure(tried: Revision, failure: RevisionFailure | None) -> MarkRevision | None:
    if failure is None:
        return None
    return MarkRevision(tried.name, tried.uid, {names.FAILURE_ANNOTATION: failure.model_dump_json()}, Why.FAILED)


def _canary(
    snapshot: Snapshot, spec: InferenceServiceSpec, tried: Revision, wanted: int, now: datetime
) -> MarkRevision | None:
    """Note that a step is reached, and that it is over."""
    found = canary_step(snapshot, spec)
    if found is None or spec.rollout.paused or tried.failure is not None:
        return None
    done, step = found
    serving = sum(pod.revision == tried.name and pod.stage is Stage.SERVING for pod in snapshot.pods)
    marks: Marks
    if tried.step_since is None:
        if serving < canary_replicas(step, wanted):
            return None
        marks = {names.STEP_SINCE_ANNOTATION: format_time(now)}
    elif now >= tried.step_since + timedelta(seconds=step.pause.seconds):
        over = {names.STEP_ANNOTATION: str(done + 1), names.PROGRESS_ANNOTATION: format_time(now)}
        marks = {**over, names.STEP_SINCE_ANNOTATION: None}
    else:
        return None
    return MarkRevision(tried.name, tried.uid, marks, Why.CANARY)


def _goldens(snapshot: Snapshot, spec: InferenceServiceSpec, tried: Revision) -> Iterable[CompareGoldens]:
    """Compare golden prompts once a pod of the new revision could serve."""
    reference = reference_pod(snapshot, tried)
    able = [pod for pod in snapshot.pods if _could_answer(pod) and waits_for_goldens(pod, snapshot, spec)]
    if reference is None or not able or spec.rollout.paused or tried.failure is not None:
        return
    pod = min(able, key=lambda each: each.name)
    rollback = spec.rollout.auto_rollback
    yield CompareGoldens(
        pod=pod.name,
        ip=pod.ip,
        revision=tried.name,
        uid=tried.uid,
        against=reference.name,
        against_ip=reference.ip,
        against_revision=reference.revision,
        prompts=tuple(rollback.golden_prompts),
        tolerance=rollback.golden_tolerance,
    )


def _could_answer(pod: Pod) -> bool:
    return pod.stays and pod.has_process and pod.serves_now


def _due(snapshot: Snapshot, spec: InferenceServiceSpec, wanted: int, now: datetime) -> datetime | None:
    """When the trial is to be judged, and when the present step of the canary is over."""
    watched = watched_until(snapshot, spec)
    dues = [judge(snapshot, spec, wanted, now).due, watched if watched is not None and watched > now else None]
    tried, found = on_trial(snapshot), canary_step(snapshot, spec)
    if tried is not None and tried.step_since is not None and found is not None and not spec.rollout.paused:
        dues.append(tried.step_since + timedelta(seconds=found[1].pause.seconds))
    return min((due for due in dues if due is not None), default=None)


def _surplus(snapshot: Snapshot, spec: InferenceServiceSpec) -> list[Revision]:
    """Old revisions beyond `revisionHistoryLimit`, apart from those in use or that may have to be gone back to."""
    target = snapshot.target
    used = {snapshot.revision, target.name, *(pod.revision for pod in snapshot.pods)}
    current = snapshot.current
    back = fallback(snapshot.revision, snapshot.history, snapshot.live_revisions)
    if back is not None and (current is None or current.served_at is None):
        used.add(back.name)
    idle = sorted((each for each in snapshot.history if each.name not in used), key=lambda each: each.number)
    return idle[: max(0, len(idle) - spec.rollout.revision_history_limit)]
