"""The conditions: each truth table above its function, line by line."""

from typing import Any

import pytest

from kvasir_operator.api.conditions import ConditionType, Reason, find_condition
from kvasir_operator.api.field_errors import FieldError
from kvasir_operator.planning import verdicts
from kvasir_operator.planning.facts import Facts
from kvasir_operator.planning.state import Container, PodCondition, Scaling, Stage, Termination
from kvasir_operator.planning.status import make_status
from kvasir_runtime.contract.admin_api import Phase
from kvasir_runtime.contract.failures import Cause, FailureReport
from tests.kvasir_operator.planning.builders import NOW, SILENT, engine, pod, snapshot, waiting

INVALID = (FieldError("spec.scaling.maxReplicas", "must be at least minReplicas (4), got 2"),)
FORBIDDEN = (FieldError("spec.model.source.uri", "needs a setting, got file:///x"),)
SERVING, SECOND = pod("a"), pod("b")
STARTING = pod("s", Stage.STARTING)
DRAINING = pod("d", Stage.DRAINING)


def crashed(cause: Cause, **fields: Any):
    end = Termination(1, message=FailureReport(cause, "it failed", "mend it").to_json(), finished_at=NOW)
    container = waiting("CrashLoopBackOff", ended_before=end)
    return pod("x", Stage.STARTING, containers=(container,), runtime=SILENT, **fields)


NO_MODEL, NO_MEMORY = crashed(Cause.MODEL_NOT_FOUND), crashed(Cause.OUT_OF_MEMORY_KV_CACHE)


def judged(judge, pods, **fields):
    verdict = judge(Facts(snapshot(pods, **fields), NOW))
    return None if verdict is None else (verdict.status, verdict.reason)


@pytest.mark.parametrize(
    ("pods", "fields", "expected"),
    [
        ([SERVING], {"errors": INVALID}, ("False", Reason.INVALID_SPEC)),
        ([SERVING], {"spec": None}, ("False", Reason.INVALID_SPEC)),
        ([SERVING], {"source_errors": FORBIDDEN}, ("False", Reason.SOURCE_NOT_ALLOWED)),
        ([SERVING], {"replicas": 0}, ("False", Reason.SCALED_TO_ZERO)),
        ([SERVING], {"replicas": 1}, ("True", Reason.REPLICAS_READY)),
        ([SERVING, SECOND], {"replicas": 1}, ("True", Reason.REPLICAS_READY)),
        ([SERVING, NO_MODEL], {"replicas": 1}, ("True", Reason.REPLICAS_READY)),
        ([SERVING, STARTING], {"replicas": 2}, ("True", Reason.SOME_REPLICAS_READY)),
        ([SERVING, NO_MODEL], {"replicas": 2}, ("True", Reason.SOME_REPLICAS_READY)),
        ([STARTING], {"replicas": 1}, ("False", Reason.NO_REPLICAS_READY)),
        ([], {"replicas": 1}, ("False", Reason.NO_REPLICAS_READY)),
        ([DRAINING], {"replicas": 1}, ("False", Reason.NO_REPLICAS_READY)),
        ([NO_MODEL], {"replicas": 1}, ("False", Reason.MODEL_NOT_FOUND)),
    ],
)
def test_ready(pods, fields, expected):
    """Ready: a request that is sent to the service is answered."""
    assert judged(verdicts.ready, pods, **fields) == expected


FETCHING = pod("f", Stage.STARTING, containers=(Container("fetch", init=True, running=True),), runtime=SILENT)
CREATED = pod("c", Stage.STARTING, containers=(waiting("ContainerCreating"),), runtime=SILENT)


@pytest.mark.parametrize(
    ("pods", "expected"),
    [
        ([SERVING], ("True", Reason.MODEL_LOADED)),
        ([SERVING, NO_MODEL], ("True", Reason.MODEL_LOADED)),
        ([NO_MODEL], ("False", Reason.MODEL_NOT_FOUND)),
        ([pod("a", revision="old"), NO_MODEL], ("False", Reason.MODEL_NOT_FOUND)),
        ([FETCHING], ("Unknown", Reason.FETCHING_MODEL)),
        ([STARTING], ("Unknown", Reason.LOADING_MODEL)),
        ([CREATED], None),
        ([NO_MEMORY], None),
        ([], None),
    ],
)
def test_model_available(pods, expected):
    """ModelAvailable speaks of the newest revision."""
    assert judged(verdicts.model_available, pods) == expected


@pytest.mark.parametrize(
    ("pods", "expected"),
    [
        ([NO_MEMORY], ("False", Reason.OUT_OF_MEMORY_KV_CACHE)),
        ([SERVING, NO_MEMORY], ("False", Reason.OUT_OF_MEMORY_KV_CACHE)),
        ([SERVING], ("True", Reason.FITS)),
        ([pod("a", runtime=SILENT)], None),
        ([], None),
    ],
)
def test_capacity_fits(pods, expected):
    """CapacityFits needs a measurement or a failure."""
    assert judged(verdicts.capacity_fits, pods) == expected


def unplaced(message: str):
    scheduled = PodCondition("False", "Unschedulable", message, NOW)
    return pod(
        "u", Stage.STARTING, node="", ip="", containers=(), runtime=SILENT, conditions={"PodScheduled": scheduled}
    )


GPU = {"accelerator": {"vendor": "nvidia"}}


@pytest.mark.parametrize(
    ("pods", "fields", "expected"),
    [
        ([unplaced("Insufficient nvidia.com/gpu")], {}, None),
        ([unplaced("1 Insufficient nvidia.com/gpu")], GPU, ("False", Reason.WAITING_FOR_GPU)),
        ([unplaced("didn't match Pod's node affinity")], GPU, ("False", Reason.NO_MATCHING_NODE)),
        ([NO_MODEL, unplaced("1 Insufficient nvidia.com/gpu")], GPU, ("False", Reason.WAITING_FOR_GPU)),
        ([NO_MODEL], GPU, ("True", Reason.ALLOCATED)),
        ([SERVING], GPU, ("True", Reason.ALLOCATED)),
        ([unplaced("")], GPU, None),
        ([], GPU, None),
    ],
)
def test_accelerator_available(pods, fields, expected):
    """AcceleratorAvailable says nothing where no accelerator is asked for."""
    assert judged(verdicts.accelerator_available, pods, **fields) == expected


WARMING = pod("w", Stage.STARTING, runtime=engine(Phase.WARMING))


@pytest.mark.parametrize(
    ("pods", "fields", "expected"),
    [
        ([SERVING], {"errors": INVALID}, ("False", Reason.INVALID_SPEC)),
        ([SERVING], {"source_errors": FORBIDDEN}, ("False", Reason.SOURCE_NOT_ALLOWED)),
        ([NO_MODEL], {}, ("False", Reason.MODEL_NOT_FOUND)),
        ([pod("a", revision="old"), STARTING], {}, ("True", Reason.ROLLING_OUT)),
        ([SERVING, pod("d", Stage.DRAINING, revision="old")], {}, ("True", Reason.ROLLING_OUT)),
        ([SERVING], {"replicas": 2}, ("True", Reason.CREATING_REPLICAS)),
        ([CREATED], {}, ("True", Reason.CREATING_REPLICAS)),
        ([FETCHING], {}, ("True", Reason.FETCHING_MODEL)),
        ([STARTING], {}, ("True", Reason.LOADING_MODEL)),
        ([WARMING], {}, ("True", Reason.WARMING)),
        ([SERVING, DRAINING], {}, ("True", Reason.DRAINING)),
        ([SERVING, SECOND], {}, ("True", Reason.REMOVING_REPLICAS)),
        ([SERVING], {}, ("False", Reason.CONVERGED)),
        ([], {"replicas": 0}, ("False", Reason.CONVERGED)),
    ],
)
def test_progressing(pods, fields, expected):
    """Progressing: on the way to what the spec asks for."""
    assert judged(verdicts.progressing, pods, **fields) == expected


@pytest.mark.parametrize(
    ("judge", "fields", "expected"),
    [
        (verdicts.adapters_ready, {}, None),
        (
            verdicts.adapters_ready,
            {"adapters": [{"name": "x", "source": {"uri": "pvc://c/x"}}]},
            ("False", Reason.ADAPTERS_LOADING),
        ),
        (verdicts.scaling_active, {}, None),
        (verdicts.scaling_active, {"scaling": {"maxReplicas": 3}}, ("Unknown", Reason.METRICS_UNKNOWN)),
        (verdicts.scaling_active, {"scaling": {"maxReplicas": 3}, "replicas": 0}, ("False", Reason.SCALED_TO_ZERO)),
        (
            verdicts.scaling_active,
            {"scaling": {"maxReplicas": 3}, "autoscaling": Scaling(owner="an HPA")},
            ("False", Reason.OWNED_BY_OTHER),
        ),
        (verdicts.degraded, {}, ("False", Reason.HEALTHY)),
    ],
)
def test_the_smaller_ones(judge, fields, expected):
    """Adapters and scaling speak when asked for; Degraded always."""
    assert judged(judge, [SERVING], **fields) == expected


def test_degraded_names_pod_cause_and_remedy():
    """What a person reads first."""
    verdict = verdicts.degraded(Facts(snapshot([SERVING, NO_MODEL]), NOW))
    assert (verdict.status, verdict.reason) == ("True", Reason.MODEL_NOT_FOUND)
    assert verdict.message == "x: it failed. mend it"


def test_a_condition_with_nothing_new_to_say_stays_or_goes():
    """The model is still available while a pod is replaced; a verdict on capacity is not kept."""
    before = make_status(snapshot([SERVING]), NOW)
    assert find_condition(before.conditions, ConditionType.CAPACITY_FITS) is not None
    after = make_status(snapshot([CREATED], status=before.to_manifest()), NOW)
    model = find_condition(after.conditions, ConditionType.MODEL_AVAILABLE)
    assert model is not None
    assert model.reason is Reason.MODEL_LOADED
    assert find_condition(after.conditions, ConditionType.CAPACITY_FITS) is None
