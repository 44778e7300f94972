"""The status to be: computed whole from a snapshot, with what was known before where nothing new is known."""

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Final

from kvasir_operator.api.base import format_time
from kvasir_operator.api.conditions import Condition, ConditionType, drop_condition, set_condition
from kvasir_operator.api.status import InspectionStatus
from kvasir_operator.api.v1alpha1 import (
    CanaryStatus,
    CapacityStatus,
    InferenceServiceStatus,
    LastFailure,
    RevisionStatus,
    Summary,
    WarmupStatus,
)
from kvasir_operator.placement.capacity import Fit
from kvasir_operator.planning.facts import Facts
from kvasir_operator.planning.failures import Failure
from kvasir_operator.planning.inspecting import inspected
from kvasir_operator.planning.revisions import Revision
from kvasir_operator.planning.state import Pod, Snapshot, Stage
from kvasir_operator.planning.trial import canary_step, on_trial
from kvasir_operator.planning.verdicts import STICKY, VERDICTS
from kvasir_operator.resources import names
from kvasir_runtime.contract.admin_api import AdminState


def make_status(snapshot: Snapshot, now: datetime) -> InferenceServiceStatus:
    """The status that tells what `snapshot` holds; equal to the present one when nothing changed."""
    facts = Facts(snapshot, now)
    meta, before = snapshot.meta, snapshot.status
    return before.model_copy(
        update={
            "observed_generation": meta.generation,
            "url": names.service_url(meta.name, meta.namespace),
            "selector": names.selector_text(names.replica_selector(meta.name)),
            "replicas": len(facts.staying),
            "ready_replicas": len(facts.serving),
            "updated_replicas": len(facts.updated) if snapshot.revision else before.updated_replicas,
            "desired_replicas": before.desired_replicas if facts.wanted is None else facts.wanted,
            "summary": _summary(facts),
            "conditions": _conditions(facts, now),
            "current_revision": _current_revision(facts),
            "update_revision": snapshot.revision or before.update_revision,
            "revisions": _revisions(facts),
            "canary": _canary(facts),
            "capacity": _capacity(facts),
            "warmup": _warmup(facts) or before.warmup,
            "adapters": facts.adapters if snapshot.acceptable else before.adapters,
            "scaling": snapshot.autoscaling.status if snapshot.autoscaling is not None else before.scaling,
            "inspection": _inspection(facts, now),
            "last_failure": _last_failure(facts.failure, before.last_failure, now),
        }
    )


def _conditions(facts: Facts, now: datetime) -> list[Condition]:
    conditions = facts.snapshot.status.conditions
    generation = facts.snapshot.meta.generation
    for kind, judge in VERDICTS.items():
        verdict = judge(facts)
        if verdict is not None:
            conditions = set_condition(
                conditions,
                kind,
                verdict.status,
                verdict.reason,
                verdict.message,
                now=now,
                observed_generation=generation,
            )
        elif kind not in STICKY:
            conditions = drop_condition(conditions, kind)
    return list(conditions)


def _summary(facts: Facts) -> Summary:
    """The columns of `kubectl get`."""
    spec, before = facts.snapshot.spec, facts.snapshot.status.summary or Summary()
    model = spec.model.source.uri.rstrip("/").rpartition("/")[2] if spec is not None else before.model
    wanted = facts.wanted if facts.wanted is not None else facts.snapshot.status.desired_replicas
    shown = "?" if wanted is None else wanted
    return Summary(model=model, replicas=f"{len(facts.serving)}/{shown}", kv_cache=_kv_use(facts.serving))


def _kv_use(pods: Iterable[Pod]) -> str:
    """Mean share of KV blocks that running requests hold, over the replicas that answer; empty: unknown."""
    shares = [
        pod.runtime.kv.blocks_active / pod.runtime.kv.blocks_total
        for pod in pods
        if isinstance(pod.runtime, AdminState) and pod.runtime.kv is not None and pod.runtime.kv.blocks_total > 0
    ]
    return f"{100 * sum(shares) / len(shares):.0f}%" if shares else ""


def _current_revision(facts: Facts) -> str | None:
    """The revision that serves: the old one until its last pod has gone."""
    before = facts.snapshot.status.current_revision
    outdated = [pod.revision for pod in facts.outdated if pod.stays]
    if not outdated:
        return facts.target.name or before
    return before if before in outdated else max(outdated, key=lambda revision: (outdated.count(revision), revision))


def _revisions(facts: Facts) -> list[RevisionStatus]:
    """Revisions that are kept, that have pods, or that the spec asks for, by their numbers."""
    kept = {each.name: each for each in facts.snapshot.history}
    names_present = kept.keys() | {pod.revision for pod in facts.staying} | ({facts.snapshot.revision} - {""})
    found = [_revision(facts, name, kept.get(name)) for name in names_present]
    return sorted(found, key=lambda each: (each.number, each.name))


def _revision(facts: Facts, name: str, kept: Revision | None) -> RevisionStatus:
    pods = [pod for pod in facts.staying if pod.revision == name]
    serving = sum(pod.stage is Stage.SERVING for pod in pods)
    return RevisionStatus(
        name=name,
        number=kept.number if kept is not None else 0,
        created_at=kept.created_at if kept is not None else None,
        replicas=len(pods),
        ready_replicas=serving,
        message=_outcome(kept) if kept is not None else "",
    )


def _outcome(kept: Revision) -> str:
    """What became of a revision."""
    if kept.failure is not None:
        return f"{kept.failure.cause}: {kept.failure.message}"
    return f"has served since {format_time(kept.served_at)}" if kept.served_at is not None else kept.goldens


def _canary(facts: Facts) -> CanaryStatus | None:
    """How the requests are to be divided while a new revision is tried."""
    spec, tried = facts.snapshot.spec, on_trial(facts.snapshot)
    found = canary_step(facts.snapshot, spec) if spec is not None else None
    if found is None or tried is None or spec is None or spec.rollout.canary is None:
        return None
    return CanaryStatus(
        revision=tried.name,
        traffic=found[1].traffic if any(pod.stage is Stage.SERVING for pod in facts.updated) else 0,
        step=found[0] + 1,
        steps=len(spec.rollout.canary.steps),
        since=tried.step_since,
    )


def _warmup(facts: Facts) -> WarmupStatus | None:
    """The last warmup that ended; None where none did, as far as this process knows."""
    ended = [(pod.warming.ended_at, pod) for pod in facts.staying if pod.warming and pod.warming.ended_at]
    if not ended:
        return None
    _, pod = max(ended, key=lambda each: (each[0], each[1].name))
    last = pod.warming
    assert last is not None
    result = last.result
    return WarmupStatus(
        pod=pod.name,
        tokens=result.computed_tokens if result is not None else 0,
        cached_tokens=result.cached_tokens if result is not None else 0,
        last_duration=f"{result.seconds:.1f}s" if result is not None else None,
        message=f"failed {last.failures} times: {last.error}" if last.error else last.words,
    )


def _capacity(facts: Facts) -> CapacityStatus | None:
    """What an engine measured, else what was planned; as before while nobody says anything."""
    planned = facts.snapshot.outlook.assessment.planned
    if isinstance(planned, Fit) and (facts.measured is None or _is_new(facts)):
        return planned.to_status()
    if facts.measured is None or facts.measured.capacity is None:
        return facts.snapshot.status.capacity
    got = facts.measured.capacity
    return CapacityStatus(
        weights=got.weights_bytes,
        kv_bytes_per_token=got.kv_bytes_per_token,
        kv_tokens=got.kv_tokens,
        max_concurrent_sequences=got.max_concurrent_sequences,
        source="measured",
    )


def _is_new(facts: Facts) -> bool:
    """Whether no replica of the newest revision has loaded its model: what others measured is of another model."""
    return bool(facts.snapshot.revision) and facts.measured not in [pod.runtime for pod in facts.updated]


def _inspection(facts: Facts, now: datetime) -> InspectionStatus | None:
    """What is known of the source that the spec names."""
    snapshot = facts.snapshot
    before = snapshot.status.inspection
    if not snapshot.inspection.key:
        return before
    found = inspected(snapshot, now) or before
    return found if found is not None and found.source == snapshot.inspection.key else None


def _last_failure(failure: Failure | None, before: LastFailure | None, now: datetime) -> LastFailure | None:
    """The latest failure stays when it is over; the same one keeps its time unless it happened again."""
    if failure is None:
        return before
    same = before is not None and (before.pod, before.cause, before.message) == (
        failure.pod,
        failure.cause.value,
        failure.message,
    )
    time = failure.time or (before.time if same and before is not None else now)
    return LastFailure(
        time=time, pod=failure.pod, cause=failure.cause.value, message=failure.message, remedy=failure.remedy
    )


class Change(StrEnum):
    """How much one status differs from another."""

    NONE = "none"
    DETAIL = "detail"
    NEWS = "news"


def change_between(before: InferenceServiceStatus, after: InferenceServiceStatus) -> Change:
    """Whether `after` is worth a write at once (news), soon (details: use of the cache, progress), or not at all."""
    if before == after:
        return Change.NONE
    return Change.DETAIL if _without_details(before) == _without_details(after) else Change.NEWS


def _without_details(status: InferenceServiceStatus) -> InferenceServiceStatus:
    summary = status.summary.model_copy(update={"kv_cache": ""}) if status.summary is not None else None
    conditions = [
        each.model_copy(update={"message": ""}) if each.type in _TELLING_PROGRESS else each
        for each in status.conditions
    ]
    return status.model_copy(update={"summary": summary, "conditions": conditions})


_TELLING_PROGRESS: Final = frozenset(
    {
        ConditionType.PROGRESSING,
        ConditionType.MODEL_AVAILABLE,
        ConditionType.ACCELERATOR_AVAILABLE,
        ConditionType.SCALING_ACTIVE,
    }
)
