"""The conditions of a service: for each its truth table, and the function that follows it line by line."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from kvasir_operator.api.conditions import ConditionStatus, ConditionType, Reason
from kvasir_operator.api.status import AdapterStatus
from kvasir_operator.placement.capacity import Fit
from kvasir_operator.planning.facts import Facts
from kvasir_operator.planning.failures import Failure
from kvasir_operator.planning.revisions import Heading
from kvasir_operator.planning.state import Pod, Stage
from kvasir_operator.planning.trial import canary_step
from kvasir_operator.planning.warming import WARMING
from kvasir_operator.resources import names
from kvasir_operator.scaling.bounds import Verdict as ScalingVerdict
from kvasir_operator.scaling.words import standing_text
from kvasir_runtime.contract.admin_api import AdminState, Phase
from kvasir_runtime.contract.quantities import format_bytes


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a condition says. None in its place: the condition has nothing to say and is left out."""

    status: ConditionStatus
    reason: Reason
    message: str


# | spec    | wanted | serving     | failure | Ready | reason            |
# |---------|--------|-------------|---------|-------|-------------------|
# | invalid | any    | any         | any     | False | InvalidSpec       |
# | refused | any    | any         | any     | False | SourceNotAllowed  |
# | valid   | 0      | any         | any     | False | ScaledToZero      |
# | valid   | n      | n or more   | any     | True  | ReplicasReady     |
# | valid   | n      | 1 to n - 1  | any     | True  | SomeReplicasReady |
# | valid   | n      | 0           | none    | False | NoReplicasReady   |
# | valid   | n      | 0           | yes     | False | its cause         |
def ready(facts: Facts) -> Verdict:
    """Ready: a request that is sent to the service is answered."""
    wanted, serving = facts.wanted, len(facts.serving)
    if wanted is None or not facts.snapshot.acceptable:
        return _refused(facts, "; ".join(map(str, facts.snapshot.errors)))
    if wanted == 0:
        return Verdict("False", Reason.SCALED_TO_ZERO, "no replicas are wanted")
    if serving >= wanted:
        return Verdict("True", Reason.REPLICAS_READY, f"{serving} of {wanted} replicas serve")
    if serving > 0:
        return Verdict("True", Reason.SOME_REPLICAS_READY, f"{serving} of {wanted} replicas serve{_because(facts)}")
    if facts.failure is not None:
        return Verdict("False", facts.failure.cause, _words(facts))
    return Verdict("False", Reason.NO_REPLICAS_READY, f"0 of {wanted} replicas serve")


def _refused(facts: Facts, message: str) -> Verdict:
    """A spec that nothing is done for: contradictory, or with a source that the operator's settings refuse."""
    if facts.snapshot.source_errors and not facts.snapshot.errors:
        return Verdict("False", Reason.SOURCE_NOT_ALLOWED, _words(facts))
    return Verdict("False", Reason.INVALID_SPEC, message)


# | spec    | failure of the model | newest revision            | ModelAvailable | reason        |
# |---------|----------------------|----------------------------|----------------|---------------|
# | invalid | no                   | any                        | as before      |               |
# | valid   | any                  | an engine has loaded it    | True           | ModelLoaded   |
# | valid   | yes                  | none has loaded it         | False          | its cause     |
# | valid   | no                   | a pod fetches it           | Unknown        | FetchingModel |
# | valid   | no                   | a pod loads it             | Unknown        | LoadingModel  |
# | valid   | no                   | no pod has got so far      | as before      |               |
def model_available(facts: Facts) -> Verdict | None:
    """ModelAvailable: the model is where the spec says, whole and supported."""
    loaded = [pod for pod in facts.updated if pod.serves_now or pod.stage is Stage.SERVING]
    if loaded:
        return Verdict("True", Reason.MODEL_LOADED, f"{loaded[0].name} has loaded the model")
    failed = _failed_by(facts, ConditionType.MODEL_AVAILABLE)
    if failed is not None:
        return failed
    steps = [_step(pod) for pod in facts.updated]
    for reason in (Reason.FETCHING_MODEL, Reason.LOADING_MODEL):
        if any(step == reason for step in steps):
            return Verdict("Unknown", reason, _steps_text(facts))
    return None


# | out of memory | engine measured | the plan     | looked at | CapacityFits | reason           |
# |---------------|-----------------|--------------|-----------|--------------|------------------|
# | yes           | any             | any          | any       | False        | its cause        |
# | no            | yes             | any          | any       | True         | Fits             |
# | no            | no              | does not fit | any       | False        | its cause        |
# | no            | no              | fits         | any       | True         | Fits             |
# | no            | no              | none         | in vain   | Unknown      | InspectionFailed |
# | no            | no              | none         | now       | Unknown      | Inspecting       |
# | no            | no              | none         | no        | left out     |                  |
def capacity_fits(facts: Facts) -> Verdict | None:
    """CapacityFits: weights, KV cache and the rest fit into what a replica has."""
    failed = _failed_by(facts, ConditionType.CAPACITY_FITS)
    if failed is not None:
        return failed
    if facts.measured is not None and facts.measured.capacity is not None:
        got = facts.measured.capacity
        text = f"weights {format_bytes(got.weights_bytes)}, KV cache for {got.kv_tokens} tokens"
        return Verdict("True", Reason.FITS, text)
    return _as_planned(facts) or _looked_at(facts)


def _as_planned(facts: Facts) -> Verdict | None:
    planned = facts.snapshot.outlook.assessment.planned
    if isinstance(planned, Fit):
        plan, rooms = planned.plan, facts.snapshot.outlook.rooms
        where = f" on {rooms[0].product}" if rooms else ""
        text = f"planned{where}: weights {format_bytes(plan.weights_bytes)}, KV cache for {plan.kv_tokens} tokens"
        return Verdict("True", Reason.FITS, text)
    return None


def _looked_at(facts: Facts) -> Verdict | None:
    known = facts.snapshot.status.inspection
    if facts.snapshot.inspection.key and known is not None and known.source == facts.snapshot.inspection.key:
        doubt = known.message or (known.report.doubt if known.report is not None else "")
        return Verdict("Unknown", Reason.INSPECTION_FAILED, doubt) if doubt else None
    if facts.snapshot.inspection.pods and not facts.updated:
        return Verdict("Unknown", Reason.INSPECTING, "the model's config.json is being read")
    return None


# | accelerator asked for | failure of devices | all pods have a node | AcceleratorAvailable | reason    |
# |-----------------------|--------------------|----------------------|----------------------|-----------|
# | no                    | any                | any                  | left out             |           |
# | yes                   | yes                | any                  | False                | its cause |
# | yes                   | no                 | some wait for others | False                | WaitingForGPU |
# | yes                   | no                 | yes, at least one    | True                 | Allocated |
# | yes                   | no                 | no                   | left out             |           |
def accelerator_available(facts: Facts) -> Verdict | None:
    """AcceleratorAvailable: the devices that the replicas ask for are theirs."""
    spec = facts.snapshot.spec
    resource = spec.accelerator.resource() if spec is not None and spec.accelerator is not None else None
    if resource is None:
        return None
    failed = _failed_by(facts, ConditionType.ACCELERATOR_AVAILABLE)
    standing = facts.snapshot.standing
    outlook = facts.snapshot.outlook
    told = "; ".join(filter(None, (outlook.turn.message, standing.message if standing is not None else "")))
    if failed is not None and standing is not None and failed.reason is not Reason.ACCELERATOR_ERROR:
        return replace(failed, message=f"{told}. {failed.message}")
    if failed is None and standing is not None and (outlook.kept_for or outlook.turn.message):
        return Verdict("False", Reason.WAITING_FOR_GPU, told)
    if failed is None and facts.staying and all(pod.node for pod in facts.staying):
        return Verdict("True", Reason.ALLOCATED, f"{len(facts.staying)} replicas have their {resource}")
    return failed


# | spec    | pods                                        | failure | Progressing | reason           |
# |---------|---------------------------------------------|---------|-------------|------------------|
# | invalid | any                                         | any     | False       | InvalidSpec      |
# | refused | any                                         | any     | False       | SourceNotAllowed |
# | valid   | of an old revision, rollout paused          | any     | Unknown     | RolloutPaused    |
# | valid   | of a revision that is given up or undone    | any     | True        | RollingBack      |
# | valid   | some do not serve                           | yes     | False       | its cause        |
# | valid   | some of an old revision, a canary is held   | no      | True        | Canary           |
# | valid   | of an old revision                          | no      | True        | RollingOut       |
# | valid   | fewer than wanted                           | any     | True        | CreatingReplicas |
# | valid   | some do not serve yet                       | no      | True        | what they do     |
# | valid   | some drain                                  | any     | True        | Draining         |
# | valid   | more than wanted                            | any     | True        | RemovingReplicas |
# | valid   | as wanted, of an earlier revision           | any     | False       | RolledBack       |
# | valid   | as wanted                                   | any     | False       | Converged        |
def progressing(facts: Facts) -> Verdict:
    """Progressing: the service is on its way to what the spec asks for."""
    if facts.wanted is None or not facts.snapshot.acceptable:
        return _refused(facts, "nothing is made or removed until the spec is valid")
    if facts.paused:
        return Verdict("Unknown", Reason.ROLLOUT_PAUSED, f"paused by spec.rollout.paused: {_counts(facts)}")
    back = facts.target.heading is not Heading.SPEC
    if back and facts.outdated:
        return Verdict("True", Reason.ROLLING_BACK, f"{_why_back(facts)}: {_counts(facts)}")
    failure = facts.present_failure if back else facts.failure
    if failure is not None and (facts.waiting or not facts.staying) and facts.wanted > 0:
        return Verdict("False", failure.cause, _told(failure))
    moving = _coming(facts, facts.wanted) or _going(facts, facts.wanted)
    if moving is None and back:
        return Verdict("False", Reason.ROLLED_BACK, _why_back(facts))
    return moving or Verdict(
        "False", Reason.CONVERGED, f"{facts.wanted} of {facts.wanted} replicas are as the spec asks"
    )


def _counts(facts: Facts) -> str:
    """`2 of 3 replicas are of revision 4 (3f9c2d41aa), 1 of them serves; 2 of older ones serve`."""
    name = facts.target.name
    new = [pod for pod in facts.staying if pod.revision == name]
    serving = sum(pod.stage is Stage.SERVING for pod in new)
    text = f"{len(new)} of {facts.wanted} replicas are of {facts.called(name)}, {serving} of them serve"
    others = len(facts.serving) - serving
    return f"{text}; {others} of other revisions serve" if others else text


def _why_back(facts: Facts) -> str:
    if facts.target.heading is Heading.PINNED:
        return f"annotation {names.ROLLBACK_ANNOTATION} asks for {facts.called(facts.target.name)}"
    return facts.rollout_failure.message if facts.rollout_failure is not None else ""


def _coming(facts: Facts, wanted: int) -> Verdict | None:
    spec = facts.snapshot.spec
    if facts.outdated:
        found = canary_step(facts.snapshot, spec) if spec is not None else None
        if found is not None:
            text = f"step {found[0] + 1}, {found[1].traffic} % for {found[1].pause}: {_counts(facts)}"
            return Verdict("True", Reason.CANARY, text)
        return Verdict("True", Reason.ROLLING_OUT, _counts(facts))
    if len(facts.staying) < wanted:
        turn = facts.snapshot.outlook.turn
        text = f"{len(facts.staying)} of {wanted} replicas exist"
        return Verdict("True", Reason.CREATING_REPLICAS, f"{text}; {turn.message}" if turn.message else text)
    if facts.waiting:
        return Verdict("True", _step(facts.waiting[0]), _steps_text(facts))
    return None


def _going(facts: Facts, wanted: int) -> Verdict | None:
    if facts.draining:
        return Verdict("True", Reason.DRAINING, f"requests still run on {_name_list(facts.draining)}")
    if len(facts.staying) > wanted:
        return Verdict("True", Reason.REMOVING_REPLICAS, f"{len(facts.staying)} replicas exist, {wanted} wanted")
    return None


# | adapters asked for | replicas serve | one failed | one is missing | AdaptersReady | reason          |
# |--------------------|----------------|------------|----------------|---------------|-----------------|
# | no                 | any            | any        | any            | left out      |                 |
# | yes                | none           | any        | any            | False         | AdaptersLoading |
# | yes                | some           | yes        | any            | False         | its cause       |
# | yes                | some           | no         | yes            | False         | AdaptersLoading |
# | yes                | some           | no         | no             | True          | AdaptersLoaded  |
def adapters_ready(facts: Facts) -> Verdict | None:
    """AdaptersReady: every adapter can be asked for. One that fails takes nothing else down."""
    spec, found = facts.snapshot.spec, facts.adapters
    if spec is None or not spec.adapters:
        return None
    failed = [each for each in found if each.cause]
    missing = [each for each in found if each.ready_replicas < each.replicas or not each.replicas]
    if failed and facts.serving:
        told = "; ".join(f"{each.name}: {each.message}" for each in failed[:SHOWN_ADAPTERS])
        more = f"; and {len(failed) - SHOWN_ADAPTERS} more" if len(failed) > SHOWN_ADAPTERS else ""
        return Verdict("False", _cause_of(failed[0]), f"{len(failed)} of {len(found)} failed: {told}{more}")
    if missing or not facts.serving:
        return Verdict("False", Reason.ADAPTERS_LOADING, f"{len(missing)} of {len(found)} are not loaded everywhere")
    return Verdict("True", Reason.ADAPTERS_LOADED, f"{len(found)} adapters are served")


SHOWN_ADAPTERS: Final = 3
"""Failed adapters that the condition tells of; all of them are in `status.adapters`."""


def _cause_of(adapter: AdapterStatus) -> Reason:
    return Reason(adapter.cause) if adapter.cause in set(Reason) else Reason.ADAPTER_INVALID


# | scaling asked for | replicas | others set them | load                    | ScalingActive | reason         |
# |-------------------|----------|-----------------|-------------------------|---------------|----------------|
# | no                | any      | any             | any                     | left out      |                |
# | yes               | any      | yes             | any                     | False         | OwnedByOther   |
# | yes               | 0        | no              | any                     | False         | ScaledToZero   |
# | yes               | n        | no              | no serving replica tells | Unknown      | MetricsUnknown |
# | yes               | n        | no              | some tell theirs        | True          | ScalingOnLoad  |
def scaling_active(facts: Facts) -> Verdict | None:
    """ScalingActive: load decides how many replicas there are."""
    spec, scaling = facts.snapshot.spec, facts.snapshot.autoscaling
    if spec is None or spec.scaling is None:
        return None
    if scaling is not None and scaling.owner:
        text = f"replicas are set by {scaling.owner}: they are only kept within minReplicas and maxReplicas"
        return Verdict("False", Reason.OWNED_BY_OTHER, text)
    if spec.replicas == 0:
        return Verdict("False", Reason.SCALED_TO_ZERO, "no replicas are set, so there is no load to see")
    if scaling is None or scaling.evaluation is None or scaling.evaluation.decision.verdict is ScalingVerdict.UNKNOWN:
        return Verdict("Unknown", Reason.METRICS_UNKNOWN, "no replica that serves tells its load; nothing is changed")
    return Verdict("True", Reason.SCALING_ON_LOAD, standing_text(scaling.evaluation))


# | failure | Degraded | reason    |
# |---------|----------|-----------|
# | yes     | True     | its cause |
# | no      | False    | Healthy   |
def degraded(facts: Facts) -> Verdict:
    """Degraded: something failed that somebody should look at."""
    if facts.failure is None:
        return Verdict("False", Reason.HEALTHY, "")
    return Verdict("True", facts.failure.cause, _words(facts))


VERDICTS: Final[Mapping[ConditionType, Callable[[Facts], Verdict | None]]] = {
    ConditionType.READY: ready,
    ConditionType.MODEL_AVAILABLE: model_available,
    ConditionType.CAPACITY_FITS: capacity_fits,
    ConditionType.ACCELERATOR_AVAILABLE: accelerator_available,
    ConditionType.PROGRESSING: progressing,
    ConditionType.ADAPTERS_READY: adapters_ready,
    ConditionType.SCALING_ACTIVE: scaling_active,
    ConditionType.DEGRADED: degraded,
}

STICKY: Final = frozenset({ConditionType.MODEL_AVAILABLE})
"""Conditions that stay as they were while nothing new is known."""


def _failed_by(facts: Facts, kind: ConditionType) -> Verdict | None:
    """The failure that makes this condition false, if there is one."""
    failure = facts.failure_by(kind)
    return Verdict("False", failure.cause, _told(failure)) if failure is not None else None


def _words(facts: Facts) -> str:
    """The failure for people: which pod, what happened, what to do."""
    assert facts.failure is not None
    return _told(facts.failure)


def _told(failure: Failure) -> str:
    where = f"{failure.pod}: " if failure.pod else ""
    return f"{where}{failure.message}. {failure.remedy}".replace("..", ".")


def _because(facts: Facts) -> str:
    return f"; {_words(facts)}" if facts.failure is not None else ""


def _name_list(pods: list[Pod]) -> str:
    return ", ".join(sorted(pod.name for pod in pods))


def _step(pod: Pod) -> Reason:
    """What a pod does that does not serve yet."""
    if any(each.init and each.running for each in pod.containers):
        return Reason.FETCHING_MODEL
    waits = pod.condition(names.WARM_GATE)
    if waits.status == "False" and waits.reason == WARMING:
        return Reason.WARMING
    if waits.status == "False" and waits.reason == Reason.ADAPTERS_LOADING:
        return Reason.ADAPTERS_LOADING
    if isinstance(pod.runtime, AdminState) and pod.runtime.startup.phase is Phase.WARMING:
        return Reason.WARMING
    server = pod.server
    return Reason.LOADING_MODEL if server is not None and server.running else Reason.CREATING_REPLICAS


def _steps_text(facts: Facts) -> str:
    return ", ".join(_step_text(pod) for pod in sorted(facts.waiting, key=lambda pod: pod.name)[:5])


def _step_text(pod: Pod) -> str:
    """`tiny-x7k2p: Loading 40%`. Progress is told in tenths, so that it does not change with every look."""
    step = _step(pod)
    if step in _PREPARING:
        return f"{pod.name}: {_PREPARING[step]}"
    if isinstance(pod.runtime, AdminState):
        startup = pod.runtime.startup
        return f"{pod.name}: {startup.phase} {int(startup.progress * 10) * 10}%"
    if not pod.node:
        return f"{pod.name}: waits for a node"
    return f"{pod.name}: {_STEP_WORDS.get(_step(pod), 'starts')} on {pod.node}"


_PREPARING: Final = {
    Reason.WARMING: "its cache is being warmed",
    Reason.ADAPTERS_LOADING: "its adapters are loading",
}
_STEP_WORDS: Final = {
    Reason.FETCHING_MODEL: f"container {names.FETCH_CONTAINER} runs",
    Reason.LOADING_MODEL: "engine starts",
    Reason.CREATING_REPLICAS: "containers are made",
}
