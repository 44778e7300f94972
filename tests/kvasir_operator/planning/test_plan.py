"""The plan as a whole: its order, its names, and that it comes to an end."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvasir_operator.api.field_errors import FieldError
from kvasir_operator.planning.actions import (
    Action,
    ApplySecret,
    ApplyService,
    CreatePod,
    DeletePod,
    Drain,
    SetGates,
    Undrain,
    Why,
)
from kvasir_operator.planning.plan import make_plan
from kvasir_operator.planning.state import ObjectState, Pod, PodCondition, PodPhase, Snapshot, Stage
from kvasir_runtime.contract.admin_api import AdminState, Phase
from tests.kvasir_operator.planning.builders import (
    NOW,
    SILENT,
    ago,
    closed,
    engine,
    gates,
    pod,
    running,
    snapshot,
    waiting,
)


def test_order() -> None:
    """What pods need, gates that open, pods that leave, ended pods, new pods."""
    pods = [
        pod("ready", Stage.STARTING, runtime=engine()),
        pod("old", revision="old"),
        pod("serving"),
        pod("dead", Stage.FINISHED, revision="old"),
    ]
    seen = snapshot(pods, replicas=3, secret=ObjectState.MISSING, service=ObjectState.OUTDATED, rollout={"maxSurge": 2})
    kinds = [type(action) for action in make_plan(seen, NOW).actions]
    assert kinds == [ApplySecret, ApplyService, SetGates, DeletePod, CreatePod]


def test_names_are_free_and_the_same_every_time() -> None:
    """A create that is planned again hits the same name; names that others have are left out."""
    first = [action.pod for action in make_plan(snapshot(replicas=3), NOW).actions if isinstance(action, CreatePod)]
    again = [action.pod for action in make_plan(snapshot(replicas=3), NOW).actions if isinstance(action, CreatePod)]
    assert first == again
    assert len(set(first)) == 3
    assert all(name.startswith("tiny-new-") for name in first)
    taken = snapshot(replicas=2, taken_names=frozenset({first[0]}))
    assert [action.pod for action in make_plan(taken, NOW).actions] == first[1:]


@pytest.mark.parametrize(
    "fields",
    [{"spec": None}, {"errors": (FieldError("spec.x", "bad"),)}, {"source_errors": (FieldError("spec.y", "bad"),)}],
)
def test_nothing_is_made_or_removed_for_a_spec_that_is_not_acceptable(fields: dict[str, Any]) -> None:
    """Pods that serve are looked after all the same; a drain stands still."""
    pods = [pod("new", Stage.STARTING, runtime=engine()), pod("d", Stage.DRAINING), pod("dead", Stage.FINISHED)]
    plan = make_plan(snapshot(pods, replicas=0, secret=ObjectState.MISSING, **fields), NOW)
    assert [(type(action), action.pod) for action in plan.actions] == [(SetGates, "new")]


def test_a_service_that_is_deleted_is_left_alone() -> None:
    """Whatever its pods are like."""
    seen = snapshot([pod("dead", Stage.FINISHED)], replicas=3)
    deleted = replace(seen, meta=seen.meta.model_copy(update={"deletion_timestamp": NOW}))
    assert make_plan(deleted, NOW).empty


def test_the_next_look_is_due_when_something_is() -> None:
    """The earliest of deadlines and waits."""
    pods = [
        pod("a", Stage.DRAINING, conditions=gates() | closed("Draining", ago(10)) | {"Ready": PodCondition("False")}),
        pod("b", Stage.DRAINING, conditions=gates() | closed("Draining", ago(20)) | {"Ready": PodCondition("False")}),
    ]
    plan = make_plan(snapshot(pods, replicas=0, drain={"timeout": "30s"}), NOW)
    assert plan.due is not None
    assert (plan.due - NOW).total_seconds() == 10


# --- What a plan leads to

STAGES = [Stage.STARTING, Stage.SERVING, Stage.UNREADY, Stage.DRAINING, Stage.FINISHED, Stage.LEAVING]
RUNTIMES = [
    SILENT,
    engine(),
    engine(inflight=2),
    engine(Phase.LOADING),
    engine(boot="boot-2"),
    engine(Phase.LOADING, boot="boot-2"),
    engine(draining=True),
    engine(draining=True, inflight=1),
]
CONTAINERS = [(running(),), (running(ready=False),), (waiting("CrashLoopBackOff"),), ()]


@st.composite
def pods(draw: st.DrawFn) -> list[Pod]:
    """Any mixture of pods; what they say need not make sense together."""
    return [
        pod(
            f"p{number}",
            draw(st.sampled_from(STAGES)),
            revision=draw(st.sampled_from(["new", "old", "older"])),
            age_s=draw(st.sampled_from([1.0, 50.0, 5000.0])),
            runtime=draw(st.sampled_from(RUNTIMES)),
            containers=draw(st.sampled_from(CONTAINERS)),
            attempt=draw(st.integers(0, 3)),
        )
        for number in range(draw(st.integers(0, 5)))
    ]


def led_to(seen: Snapshot, actions: tuple[Action, ...]) -> Snapshot:
    """The snapshot that the writes of a plan lead to, before anything else moves."""
    found = {pod.name: pod for pod in seen.pods}
    for action in actions:
        match action:
            case ApplySecret():
                seen = replace(seen, secret=ObjectState.CURRENT)
            case ApplyService():
                seen = replace(seen, service=ObjectState.CURRENT)
            case CreatePod():
                found[action.pod] = Pod(action.pod, f"{action.pod}-uid", action.revision, NOW, attempt=action.attempt)
            case DeletePod():
                found[action.pod] = replace(found[action.pod], deleting=True)
            case SetGates():
                found[action.pod] = gated(found[action.pod], action)
            case Drain() | Undrain():
                runtime = found[action.pod].runtime
                assert isinstance(runtime, AdminState)
                told = runtime.model_copy(update={"draining": isinstance(action, Drain)})
                found[action.pod] = replace(found[action.pod], runtime=told)
    return replace(seen, pods=tuple(found.values()))


def gated(target: Pod, action: SetGates) -> Pod:
    conditions = dict(target.conditions)
    for kind, gate in action.gates.items():
        conditions[kind] = PodCondition("True" if gate.open else "False", gate.reason, gate.message, NOW)
    if not all(gate.open for gate in action.gates.values()):
        conditions["Ready"] = PodCondition("False")
    return replace(target, conditions=conditions)


@given(pods(), st.integers(0, 4), st.sampled_from(["Surge", "InPlace"]))
def test_planning_on_what_a_plan_leads_to_comes_to_an_end(found: list[Pod], replicas: int, strategy: str) -> None:
    """The writes of a plan are not planned again; what follows from them is done within four plans."""
    seen = snapshot(found, replicas=replicas, rollout={"strategy": strategy})
    done: set[tuple[str, str, Why]] = set()
    for _ in range(5):
        plan = make_plan(seen, NOW)
        if plan.empty:
            return
        planned = {(action.kind, action.pod, action.why) for action in plan.actions}
        assert not planned & done
        done |= planned
        seen = led_to(seen, plan.actions)
    raise AssertionError(f"still planned: {make_plan(seen, NOW).actions}")


@given(pods(), st.integers(0, 4))
def test_a_plan_depends_on_nothing_but_its_arguments(found: list[Pod], replicas: int) -> None:
    """The order in which pods were observed included."""
    forwards = make_plan(snapshot(found, replicas=replicas), NOW)
    backwards = make_plan(snapshot(found[::-1], replicas=replicas), NOW)
    assert sorted(map(repr, forwards.actions)) == sorted(map(repr, backwards.actions))
    assert forwards.due == backwards.due


@given(pods(), st.integers(0, 4))
def test_every_pod_has_one_action_at_most(found: list[Pod], replicas: int) -> None:
    """Nothing contradicts itself."""
    names = [action.pod for action in make_plan(snapshot(found, replicas=replicas), NOW).actions]
    assert len(names) == len(set(names))


@given(pods(), st.integers(0, 4))
def test_finished_pods_alone_are_deleted_without_a_drain(found: list[Pod], replicas: int) -> None:
    """A pod that an engine says to hold requests is deleted only while it drains and past its time."""
    seen = snapshot(found, replicas=replicas)
    deleted = {action.pod for action in make_plan(seen, NOW).actions if isinstance(action, DeletePod)}
    for each in found:
        holds = isinstance(each.runtime, AdminState) and each.runtime.inflight > 0 and each.has_process
        if each.name in deleted and each.phase is not PodPhase.FAILED:
            assert not holds
