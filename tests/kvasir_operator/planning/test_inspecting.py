"""When a model is looked at, how long replicas wait for that, and what a refusal stops."""

from datetime import timedelta
from typing import Any

import pytest

from kvasir_operator.api.conditions import ConditionType, Reason, find_condition
from kvasir_operator.api.status import InspectionStatus
from kvasir_operator.placement.assessment import Assessment
from kvasir_operator.placement.capacity import plan_capacity
from kvasir_operator.placement.outlook import Outlook
from kvasir_operator.planning.actions import CreateInspection, CreatePod, DeletePod, Why
from kvasir_operator.planning.inspecting import PATIENCE, look_at_model, result_of
from kvasir_operator.planning.notes import notes_on_actions
from kvasir_operator.planning.plan import make_plan
from kvasir_operator.planning.state import (
    Container,
    Inspection,
    Pod,
    PodCondition,
    PodPhase,
    Refusal,
    Snapshot,
    Stage,
    Termination,
)
from kvasir_operator.planning.status import make_status
from kvasir_runtime.contract.failures import Cause, FailureReport
from kvasir_runtime.contract.memory import ModelShape
from kvasir_runtime.contract.model_report import ModelReport
from tests.kvasir_operator.placement.models import BY_NAME
from tests.kvasir_operator.planning.builders import NOW, ago, pod, service, snapshot

KEY = "0123456789abcdef"
NAME = "tiny-inspect-01234567"
SHAPE = ModelShape.from_hf_config(BY_NAME["Llama-3.1-8B"].config)
REPORT = ModelReport(SHAPE, "LlamaForCausalLM", 16_060_522_496)


def looking(
    phase: PodPhase = PodPhase.RUNNING, *, age_s: float = 1, end: Termination | None = None, **more: Any
) -> Pod:
    containers = (Container("inspect", running=end is None, ended=end),)
    return Pod(NAME, "look-uid", "", ago(age_s), phase, **({"containers": containers} | more))


def said(report: str, code: int = 0) -> Pod:
    phase = PodPhase.SUCCEEDED if code == 0 else PodPhase.FAILED
    return looking(phase, end=Termination(code, message=report, finished_at=NOW))


def known(age_s: float = 60, **fields: Any) -> InspectionStatus:
    return InspectionStatus(source=KEY, time=ago(age_s), **({"model": REPORT.to_data()} | fields))


def asked(*pods: Pod, beside: tuple[Pod, ...] = (), **fields: Any) -> Snapshot:
    """A service with these inspections, `beside` these replicas."""
    inspection = Inspection(KEY, fields.pop("found", None), pods, fields.pop("elsewhere", None))
    return snapshot(beside, inspection=inspection, **fields)


def created(observed: Snapshot) -> list[str]:
    return [action.kind for action in make_plan(observed, NOW).actions if action.kind.startswith("Create")]


def test_a_model_that_nobody_looked_at_is_looked_at_first() -> None:
    """Replicas wait, and are made when it says what it is."""
    plan = make_plan(asked(), NOW)
    assert plan.actions[0] == CreateInspection(NAME, KEY)
    assert created(asked()) == ["CreateInspection"]
    assert created(asked(looking())) == []
    assert created(asked(said(REPORT.to_json()))) == ["CreatePod"]
    assert created(asked(found=known())) == ["CreatePod"]


@pytest.mark.parametrize(
    ("observed", "waits"),
    [
        (asked(looking(age_s=44)), True),
        (asked(looking(age_s=46)), False),
        (asked(looking(PodPhase.PENDING, conditions={"PodScheduled": PodCondition("False", message="no")})), False),
        (asked(elsewhere=ago(44)), True),
        (asked(said("nonsense")), False),
        (asked(said(FailureReport(Cause.MODEL_NOT_FOUND, "no").to_json(), code=1)), False),
        (asked(refusals=(Refusal("CreateInspection", NAME, "quota", NOW),)), False),
    ],
)
def test_an_inspection_keeps_replicas_waiting_for_a_while_at_most(observed: Snapshot, waits: bool) -> None:
    """Whatever goes wrong with it: replicas are made all the same, and the engines find out."""
    assert look_at_model(observed, 1, NOW).waits == waits
    assert ("CreatePod" in created(observed)) != waits


def test_the_first_replicas_replace_nobody() -> None:
    """They were wanted before, while the model was looked at; none was there."""
    observed = asked(found=known(), status={"desiredReplicas": 1, "replicas": 0})
    plan = make_plan(observed, NOW)
    assert [action.why for action in plan.actions if action.kind == "CreatePod"] == [Why.SCALE_UP]
    [note] = notes_on_actions(plan.actions, observed.status, 1)
    assert note.message.startswith("from 0 to 1 replicas: created ")


def test_whoever_waits_looks_again_in_time() -> None:
    assert make_plan(asked(looking(age_s=5)), NOW).due == NOW - timedelta(seconds=5) + PATIENCE
    assert make_plan(asked(elsewhere=ago(5)), NOW).due == NOW + timedelta(seconds=1)


def test_the_pod_goes_when_what_it_said_is_written() -> None:
    pending = asked(said(REPORT.to_json()))
    assert not any(isinstance(action, DeletePod) for action in make_plan(pending, NOW).actions)
    status = make_status(pending, NOW)
    assert status.inspection == InspectionStatus(source=KEY, time=NOW, model=REPORT.to_data())
    written = asked(said(REPORT.to_json()), status=status.to_manifest())
    assert DeletePod(NAME, "look-uid", Why.INSPECTED) in make_plan(written, NOW).actions


@pytest.mark.parametrize("observed", [asked(beside=(pod("a"),)), asked(replicas=0), snapshot()])
def test_nothing_is_looked_at_that_nobody_needs_to_know(observed: Snapshot) -> None:
    """A replica that runs knows better; without replicas nothing is asked; and it can be switched off."""
    assert "CreateInspection" not in created(observed)


def test_a_leftover_goes() -> None:
    observed = asked(looking(), beside=(pod("a"),))
    assert DeletePod(NAME, "look-uid", Why.INSPECTED) in make_plan(observed, NOW).actions


def refused(**fields: Any) -> Snapshot:
    """Llama 3.1 8B with its whole context, on 24 GiB."""
    spec = service(accelerator={"count": 1}).spec
    outlook = Outlook(Assessment(plan_capacity(spec, SHAPE, 24 << 30)))
    given: dict[str, Any] = {"found": known(), "outlook": outlook, "accelerator": {"count": 1}}
    return asked(**(given | fields))


def test_what_fits_on_nothing_is_refused_with_the_numbers_and_what_would_fit() -> None:
    """No replica is made; status, condition, failure and remedy say why."""
    observed = refused()
    assert created(observed) == []
    status = make_status(observed, NOW)
    fits = find_condition(status.conditions, ConditionType.CAPACITY_FITS)
    assert fits is not None
    assert (fits.status, fits.reason) == ("False", Reason.OUT_OF_MEMORY_KV_CACHE)
    assert "needs 16Gi of KV cache" in fits.message
    assert "What would fit: spec.model.maxModelLen at most 45" in fits.message
    ready = find_condition(status.conditions, ConditionType.READY)
    assert ready is not None
    assert (ready.status, ready.reason) == ("False", Reason.OUT_OF_MEMORY_KV_CACHE)
    assert status.last_failure is not None
    assert status.last_failure.cause == "OutOfMemoryKVCache"
    assert status.last_failure.remedy.startswith("What would fit: ")


def test_a_rollout_to_what_does_not_fit_never_begins() -> None:
    """The replicas of the old revision go on serving, all of them."""
    old = tuple(pod(name, revision="old") for name in "ab")
    kinds = {action.kind for action in make_plan(refused(beside=old), NOW).actions}
    assert kinds.isdisjoint({"CreatePod", "SetGates", "DeletePod", "Drain"})


def test_a_refusal_is_looked_into_again_after_ten_minutes() -> None:
    """The source may hold another model by now; what fits is believed for as long as its address stays."""
    assert created(refused(found=known(age_s=599))) == []
    assert created(refused(found=known(age_s=601))) == ["CreateInspection"]
    assert created(asked(found=known(age_s=99_999))) == ["CreatePod"]


def test_a_failed_look_is_told_and_repeated() -> None:
    failed = said(FailureReport(Cause.SOURCE_FORBIDDEN, "403", "use a key").to_json(), code=1)
    result = result_of(failed, KEY, NOW)
    assert result is not None
    assert result.message == "SourceForbidden: 403"
    status = make_status(asked(failed), NOW)
    told = find_condition(make_status(asked(status=status.to_manifest()), NOW).conditions, ConditionType.CAPACITY_FITS)
    assert told is not None
    assert (told.status, told.reason, told.message) == ("Unknown", Reason.INSPECTION_FAILED, "SourceForbidden: 403")
    again = known(age_s=601, model={}, message="SourceForbidden: 403")
    assert created(asked(found=again)) == ["CreateInspection"]


def test_the_capacity_is_planned_and_then_measured() -> None:
    """Of the newest revision: what an engine of another model measured is no plan for this one."""
    spec = service(accelerator={"count": 1}).spec
    fits = Outlook(Assessment(plan_capacity(spec, SHAPE, 80 << 30)))
    planned = make_status(asked(found=known(), outlook=fits, accelerator={"count": 1}), NOW)
    assert planned.capacity is not None
    assert (planned.capacity.source, planned.capacity.weights) == ("planned", 16_061_054_976)
    rolling = make_status(asked(found=known(), outlook=fits, beside=(pod("a", revision="old"),)), NOW)
    assert rolling.capacity is not None
    assert rolling.capacity.source == "planned"
    measured = make_status(asked(found=known(), outlook=fits, beside=(pod("a"),)), NOW)
    assert measured.capacity is not None
    assert measured.capacity.source == "measured"
    condition = find_condition(planned.conditions, ConditionType.CAPACITY_FITS)
    assert condition is not None
    assert condition.message.startswith("planned: weights 15Gi, KV cache for ")


def test_another_sources_pod_says_nothing_about_this_one() -> None:
    assert result_of(said(REPORT.to_json()), "f" * 16, NOW) is None
    assert result_of(looking(), KEY, NOW) is None


def test_creations_name_what_they_are_for() -> None:
    """The words of the plan, as they are logged and counted."""
    action = make_plan(asked(), NOW).actions[0]
    assert (action.kind, action.why) == ("CreateInspection", Why.INSPECT)
    assert not any(isinstance(each, CreatePod) for each in make_plan(asked(), NOW).actions)


def test_a_starting_replica_counts_as_one_that_is_there() -> None:
    assert created(asked(beside=(pod("a", Stage.STARTING),))) == []
