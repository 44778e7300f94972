"""Automatic scaling as a part of the plan: from a snapshot and what is remembered to a decision and its record.

The decision stands in the status before it is carried out, so that whoever goes on after an interruption knows that the
replicas that it finds are its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from kvasir_operator.api.v1alpha1 import (
    InferenceServiceSpec,
    InferenceServiceStatus,
    ScalingDecision,
    ScalingSpec,
    ScalingStatus,
)
from kvasir_operator.planning.actions import SetReplicas, Why
from kvasir_operator.planning.state import Pod, Scaling, Snapshot, Stage
from kvasir_operator.scaling.bounds import Verdict
from kvasir_operator.scaling.evaluate import evaluate
from kvasir_operator.scaling.ownership import owner_of
from kvasir_operator.scaling.policy import Policy
from kvasir_operator.scaling.record import changes_of, record, with_decision
from kvasir_operator.scaling.samples import Sample, read_sample
from kvasir_operator.scaling.windows import Memory
from kvasir_runtime.contract.admin_api import AdminState

LOOK_AGAIN: Final = timedelta(seconds=10)
"""How soon to look again at a service of which replicas are about to be added or taken away."""
WORTH_TELLING: Final = 0.1
"""Share by which a replica's learned speed must move before the status tells the new one."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The snapshot with what scaling makes of it; a decision to carry out, if there is one, with its act.

    One that is `told` stands in the status already: its act failed, and is tried again.
    """

    snapshot: Snapshot
    decision: ScalingDecision | None = None
    told: bool = False
    action: SetReplicas | None = None
    due: datetime | None = None

    def intent(self) -> InferenceServiceStatus:
        """The status that tells the decision."""
        scaling = self.snapshot.autoscaling
        return self.snapshot.status.model_copy(update={"scaling": scaling.status if scaling is not None else None})

    def settle(self, after: Snapshot, *, done: bool) -> Snapshot:
        """`after`, seen once the plan was carried out, with what scaling makes of it; `done`: replicas were set."""
        scaling = self.snapshot.autoscaling
        if scaling is not None and scaling.status is not None and done and self.decision is not None:
            status = scaling.status.model_copy(update={"replicas": self.decision.to})
            scaling = replace(scaling, status=status)
        return replace(after, autoscaling=scaling)


def autoscale(snapshot: Snapshot, memory: Memory, now: datetime) -> Outcome:
    """Look at the load of a service that asks for scaling, and decide if nobody else does. Changes `memory` alone."""
    spec, known = snapshot.spec, snapshot.status.scaling
    if spec is None or not snapshot.acceptable:
        return Outcome(snapshot)
    if spec.scaling is None:
        return Outcome(replace(snapshot, autoscaling=Scaling()))
    owner = owner_of(snapshot.claims, spec.replicas, known)
    if owner or spec.replicas == 0:
        status = (known or ScalingStatus()).model_copy(update={"owner": owner})
        return Outcome(replace(snapshot, autoscaling=Scaling(status, owner)))
    return _decide(snapshot, spec, spec.scaling, memory, now)


def _decide(
    snapshot: Snapshot, spec: InferenceServiceSpec, scaling: ScalingSpec, memory: Memory, now: datetime
) -> Outcome:
    known = snapshot.status.scaling or ScalingStatus()
    memory.recall_speed(known.prompt_tokens_per_second)
    found = evaluate(
        memory, samples_of(snapshot), Policy.of(scaling), spec.replicas, changes_of(known, now), now.timestamp()
    )
    speed = _worth_telling(known.prompt_tokens_per_second, memory.prompt_capacity)
    status = known.model_copy(update={"replicas": spec.replicas, "owner": "", "prompt_tokens_per_second": speed})
    if not found.changes:
        waits = found.decision.verdict in (Verdict.STABILIZING, Verdict.RATE_LIMITED)
        seen = replace(snapshot, autoscaling=Scaling(status, evaluation=found))
        return Outcome(seen, due=now + LOOK_AGAIN if waits else None)
    decision, last = record(found, now), known.last_decision
    told = last is not None and (known.replicas, last.from_, last.to) == (spec.replicas, spec.replicas, decision.to)
    why = Why.SCALE_UP if decision.to > decision.from_ else Why.SCALE_DOWN
    kept = status if told else with_decision(status, decision)
    decided = replace(snapshot, autoscaling=Scaling(kept, evaluation=found))
    return Outcome(decided, decision, told, SetReplicas(decision.to, why))


def samples_of(snapshot: Snapshot) -> Mapping[str, Sample | None]:
    """What the serving replicas say, by uid; None for one that says nothing."""
    return {pod.uid: _sample(pod) for pod in snapshot.pods if pod.stage is Stage.SERVING}


def _sample(pod: Pod) -> Sample | None:
    initialized = pod.condition("Initialized").since
    prepared = (initialized - pod.created_at).total_seconds() if initialized is not None else 0.0
    return read_sample(pod.runtime, max(0.0, prepared)) if isinstance(pod.runtime, AdminState) else None


def _worth_telling(told: float | None, learned: float | None) -> float | None:
    if learned is None or (told is not None and abs(learned - told) <= WORTH_TELLING * told):
        return told
    return round(learned, 1)
