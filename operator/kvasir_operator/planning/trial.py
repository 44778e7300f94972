"""How a new revision is tried: whether it failed, how far its canary is, and whether it may take traffic.

A revision is on trial from when the spec asks for it until all replicas are of it and serve. What fails later is a
failure of pods, not of the rollout.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median
from typing import Final

from kvasir_operator.api.conditions import Reason
from kvasir_operator.api.rollout import CanaryStep
from kvasir_operator.api.v1alpha1 import InferenceServiceSpec
from kvasir_operator.planning.failures import TABLE, Failure, failure_of, worst
from kvasir_operator.planning.revisions import Heading, Revision, RevisionFailure, fallback
from kvasir_operator.planning.state import Pod, PodPhase, Snapshot, Stage
from kvasir_operator.resources import names
from kvasir_runtime.contract.admin_api import AdminState

CRASHES: Final = 3
"""Ends of a pod's process, or pods in a row that the kubelet gave up, after which a new revision counts as broken."""

LOOKS_BACK: Final = timedelta(minutes=1)
"""The time that the engines' latencies, and their counts of answers, are of."""

LEAST_ANSWERS: Final = 20
"""Requests from which a share of errors is told: a single failure is at most 5 % of them."""

LASTING: Final = frozenset(
    {
        Reason.MODEL_NOT_FOUND,
        Reason.MODEL_INVALID,
        Reason.MODEL_UNSUPPORTED,
        Reason.WEIGHTS_CORRUPT,
        Reason.CLAIM_NOT_FOUND,
        Reason.OUT_OF_MEMORY_WEIGHTS,
        Reason.OUT_OF_MEMORY_KV_CACHE,
        Reason.ADAPTER_INVALID,
        Reason.SECRET_NOT_FOUND,
        Reason.CONTAINER_CONFIG_INVALID,
        Reason.INVALID_ARGUMENTS,
    }
)
"""Causes that no repetition mends."""

CIRCUMSTANCES: Final = frozenset(
    {
        Reason.SOURCE_UNREACHABLE,
        Reason.WAITING_FOR_GPU,
        Reason.NO_MATCHING_NODE,
        Reason.UNSCHEDULABLE,
        Reason.IMAGE_PULL_FAILED,
        Reason.VOLUME_FAILED,
        Reason.SANDBOX_FAILED,
        Reason.EVICTED,
        Reason.NODE_LOST,
    }
)
"""Causes that say nothing about the revision: they may pass, until the progress deadline."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a trial so far: its failure if it has one, and when to judge again at the latest."""

    failure: RevisionFailure | None = None
    due: datetime | None = None


def on_trial(snapshot: Snapshot) -> Revision | None:
    """The revision that is being tried; None where there is none."""
    target = snapshot.target
    tried = target.revision
    if target.heading is not Heading.SPEC or tried is None or not tried.asked or tried.served_at is not None:
        return None
    return tried


# | the new revision's pods                                   | then it                                   |
# |-----------------------------------------------------------|-------------------------------------------|
# | rollout is paused, or no replicas are wanted              | is not judged                             |
# | one cannot serve, for a lasting cause, and is 30 s old    | failed, where there is one to go back to  |
# | one crashed three times, for whatever cause of its own    | failed, where there is one to go back to  |
# | those that serve for a minute are slower than allowed     | failed, where there is one to go back to  |
# | more of 20 or more requests fail than is allowed          | failed, where there is one to go back to  |
# | none began to serve, or a canary step to hold, for longer | failed: ProgressDeadlineExceeded          |
# | anything else                                             | goes on                                   |
def judge(snapshot: Snapshot, spec: InferenceServiceSpec, wanted: int, now: datetime) -> Verdict:
    """The first line of the table above that holds."""
    tried = on_trial(snapshot)
    if tried is None or spec.rollout.paused or tried.paused or wanted == 0 or tried.failure is not None:
        return Verdict()
    back = fallback(tried.name, snapshot.history, snapshot.live_revisions)
    back_to = back.name if back is not None and spec.rollout.auto_rollback.enabled else ""
    pods = [pod for pod in snapshot.pods if pod.revision == tried.name and not pod.deleting]
    broken = worst(failure for pod in pods if (failure := _broken(pod, snapshot, now)) is not None)
    broken = (
        broken or _slower(snapshot, spec, tried.name, back_to, now) or _failing(snapshot, spec, tried.name, back_to)
    )
    if broken is not None and back_to:
        return Verdict(_given_up(broken, back_to, now))
    if tried.step_since is not None or _watched(pods, wanted):
        return Verdict()
    deadline = last_progress(tried, pods) + timedelta(seconds=spec.rollout.progress_deadline.seconds)
    if now < deadline:
        return Verdict(due=min([deadline, *(_believed(pods, snapshot, now) if back_to else [])]))
    message = f"no progress for {spec.rollout.progress_deadline}{_waiting_for(pods)}"
    cause = Reason.PROGRESS_DEADLINE_EXCEEDED
    return Verdict(_given_up(Failure("", cause, message, TABLE[cause].remedy), back_to, now))


def _slower(snapshot: Snapshot, spec: InferenceServiceSpec, tried: str, back_to: str, now: datetime) -> Failure | None:
    """Compare the median of the pods' p95 times to first token; nothing where one side had no requests."""
    ratio = spec.rollout.auto_rollback.ttft_p95_ratio
    new, old = _first_tokens(snapshot, tried, now), _first_tokens(snapshot, back_to, now)
    if ratio is None or not new or not old or median(new) <= ratio * median(old):
        return None
    bound = f"more than autoRollback.ttftP95Ratio ({ratio:g}) allows"
    message = f"p95 time to first token is {median(new):.3g} s, {median(old):.3g} s on revision {back_to}, {bound}"
    return Failure("", Reason.SLOWER_THAN_BEFORE, message, TABLE[Reason.SLOWER_THAN_BEFORE].remedy)


def _first_tokens(snapshot: Snapshot, revision: str, now: datetime) -> list[float]:
    """What pods of a revision say that have served for as long as they look back."""
    pods = [pod for pod in snapshot.pods if pod.revision == revision and pod.stage is Stage.SERVING]
    said = [(pod.condition(names.SERVING_GATE).since or now, pod.runtime) for pod in pods]
    return [
        state.latency.ttft_p95
        for since, state in said
        if isinstance(state, AdminState) and state.latency.ttft_p95 is not None and now - since >= LOOKS_BACK
    ]


def _failing(snapshot: Snapshot, spec: InferenceServiceSpec, tried: str, back_to: str) -> Failure | None:
    """Compare the share of requests that fail with what is allowed, and with that of the old revision.

    What fails as often there is not the new revision's fault. Worked example with errorRate 0.02: 3 of 100 fail, 1 of
    200 on the old one: 0.03 is more than 0.02 and than 0.005. Of 19 requests nothing is told, nor of those of a pod
    that does not answer.
    """
    allowed = spec.rollout.auto_rollback.error_rate
    failed, asked = _answers(snapshot, tried)
    failed_before, asked_before = _answers(snapshot, back_to)
    if allowed is None or asked < LEAST_ANSWERS or failed <= allowed * asked:
        return None
    if asked_before >= LEAST_ANSWERS and failed * asked_before <= failed_before * asked:
        return None
    before = f"{failed_before} of {asked_before} on revision {back_to}" if asked_before else "none to compare with"
    bound = f"more than autoRollback.errorRate ({allowed:g}) allows"
    message = f"{failed} of {asked} requests of the last minute failed, {before}, {bound}"
    return Failure("", Reason.MORE_ERRORS_THAN_BEFORE, message, TABLE[Reason.MORE_ERRORS_THAN_BEFORE].remedy)


def _answers(snapshot: Snapshot, revision: str) -> tuple[int, int]:
    """Requests of the last minute that failed at pods of a revision, and all of them."""
    states = [pod.runtime for pod in snapshot.pods if pod.revision == revision]
    said = [state.answers for state in states if isinstance(state, AdminState) and state.answers is not None]
    failed = sum(each.failed for each in said)
    return failed, failed + sum(each.answered for each in said)


def _watched(pods: list[Pod], wanted: int) -> bool:
    """Whether all replicas are there and serve, so that the trial only waits for what their requests show."""
    return sum(pod.stage is Stage.SERVING for pod in pods) >= wanted


def watched_until(snapshot: Snapshot, spec: InferenceServiceSpec) -> datetime | None:
    """When the newest replica will have served for long enough to be judged by errors; None where nobody asks that.

    The first revision of a service is not watched: there is none to go back to.
    """
    tried, rollback = on_trial(snapshot), spec.rollout.auto_rollback
    if tried is None or rollback.error_rate is None or not rollback.enabled:
        return None
    if fallback(tried.name, snapshot.history, snapshot.live_revisions) is None:
        return None
    opened = [pod.condition(names.SERVING_GATE).since for pod in snapshot.pods if pod.stage is Stage.SERVING]
    last = max((since for since in opened if since is not None), default=None)
    return last + LOOKS_BACK if last is not None else None


def _given_up(failure: Failure, back_to: str, now: datetime) -> RevisionFailure:
    return RevisionFailure(
        time=now,
        cause=failure.cause,
        message=failure.message,
        remedy=failure.remedy,
        pod=failure.pod,
        back_to=back_to,
    )


def last_progress(tried: Revision, pods: list[Pod]) -> datetime:
    """When the rollout last got on: it was asked for or resumed, a canary step began, a new replica began to serve."""
    assert tried.progress_since is not None
    opened = [pod.serving_gate.since for pod in pods if pod.serving_gate is not None and pod.serving_gate.holds]
    return max([tried.progress_since, *(since for since in opened if since is not None)])


def _broken(pod: Pod, snapshot: Snapshot, now: datetime) -> Failure | None:
    """Why the pod will never serve, as far as can be told; None for one that may."""
    failure = failure_of(pod)
    if failure is None or failure.cause in CIRCUMSTANCES:
        return None
    if failure.cause in LASTING:
        return failure if now >= _believed_at(pod, snapshot) else None
    ends = max((each.restarts for each in pod.containers), default=0)
    given_up = pod.attempt + 1 if pod.phase in (PodPhase.FAILED, PodPhase.SUCCEEDED) else 0
    return failure if max(ends, given_up) >= CRASHES else None


def _believed_at(pod: Pod, snapshot: Snapshot) -> datetime:
    return pod.created_at + timedelta(seconds=snapshot.timings.broken_after)


def _believed(pods: list[Pod], snapshot: Snapshot, now: datetime) -> list[datetime]:
    """When pods that fail already are old enough to be believed."""
    return [_believed_at(pod, snapshot) for pod in pods if now < _believed_at(pod, snapshot) and failure_of(pod)]


def _waiting_for(pods: list[Pod]) -> str:
    found = worst(failure for pod in pods if (failure := failure_of(pod)) is not None)
    return f"; {found.pod}: {found.message}" if found is not None else ""


# --- Canary


def canary_step(snapshot: Snapshot, spec: InferenceServiceSpec) -> tuple[int, CanaryStep] | None:
    """The step that the trial is in, counted from 0; None without a trial, or when all steps are done.

    The first revision of a service has none: there is nothing to compare it with.
    """
    tried = on_trial(snapshot)
    steps = spec.rollout.canary.steps if spec.rollout.canary is not None else []
    if tried is None or tried.steps_done >= len(steps):
        return None
    others = [pod for pod in snapshot.pods if pod.revision != tried.name and pod.stage is Stage.SERVING]
    return (tried.steps_done, steps[tried.steps_done]) if others else None


def canary_replicas(step: CanaryStep, wanted: int) -> int:
    """Replicas of the new revision in a step: its share of `wanted`, rounded down, at least one: 25 % of 10 are 2."""
    return min(wanted, max(1, wanted * step.traffic // 100))


# --- Golden prompts


def waits_for_goldens(pod: Pod, snapshot: Snapshot, spec: InferenceServiceSpec) -> bool:
    """Whether a pod must not take traffic yet, because golden prompts are to be compared first."""
    tried = on_trial(snapshot)
    rollback = spec.rollout.auto_rollback
    if tried is None or pod.revision != tried.name or not rollback.enabled or not rollback.golden_prompts:
        return False
    opened = pod.serving_gate is not None
    return not tried.goldens and not opened and reference_pod(snapshot, tried) is not None


def reference_pod(snapshot: Snapshot, tried: Revision) -> Pod | None:
    """The pod of the revision to go back to that is asked for golden prompts: the one with the fewest requests."""
    back = fallback(tried.name, snapshot.history, snapshot.live_revisions)
    serving = [
        pod for pod in snapshot.pods if back is not None and pod.revision == back.name and pod.stage is Stage.SERVING
    ]
    return min(serving, key=lambda pod: (_inflight(pod), pod.name), default=None)


def _inflight(pod: Pod) -> int:
    return getattr(pod.runtime, "inflight", 0)


MARKS_OF_A_TRIAL: Final = (
    names.SERVED_ANNOTATION,
    names.FAILURE_ANNOTATION,
    names.STEP_ANNOTATION,
    names.STEP_SINCE_ANNOTATION,
    names.GOLDEN_ANNOTATION,
    names.PAUSED_ANNOTATION,
)
"""What is taken away when a revision is asked for anew."""
