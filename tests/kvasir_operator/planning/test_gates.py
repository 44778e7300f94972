"""Readiness gates: the table of `planning.gates`, line by line."""

import pytest

from kvasir_operator.planning.actions import SetGates, Undrain, Why
from kvasir_operator.planning.gates import admit
from kvasir_operator.planning.state import PodCondition, Stage
from kvasir_operator.resources import names
from kvasir_runtime.contract.admin_api import Phase
from tests.kvasir_operator.planning.builders import SILENT, closed, engine, gates, pod, running, waiting

UNREADY = {"Ready": PodCondition("False")}


@pytest.mark.parametrize(
    "untouched",
    [
        pod("p", runtime=SILENT),
        pod("p", Stage.STARTING, runtime=SILENT),
        pod("p", Stage.STARTING),
        pod("p"),
        pod("p", Stage.STARTING, containers=(waiting("CrashLoopBackOff"),), runtime=SILENT),
        pod("p", Stage.UNREADY, runtime=engine()),
    ],
    ids=["unknown", "unknown and new", "loading", "all is well", "crashed, never open", "kubelet takes its time"],
)
def test_left_alone(untouched):
    """Nothing to say."""
    assert admit(untouched) is None


@pytest.mark.parametrize(
    "opened",
    [
        pod("p", Stage.STARTING, runtime=engine(boot="b")),
        pod("p", Stage.UNREADY, conditions=gates("older") | UNREADY, runtime=engine(boot="b")),
        pod("p", Stage.UNREADY, conditions=closed("Restarted") | UNREADY, runtime=engine(boot="b")),
        pod("p", Stage.DRAINING, runtime=engine(boot="b")),
    ],
    ids=["new", "restarted before anybody saw it", "restarted", "called back"],
)
def test_opened_for_the_process_that_serves(opened):
    """All gates in one write, with the boot id."""
    action = admit(opened)
    assert isinstance(action, SetGates)
    assert action.why is Why.READY
    assert {gate: (state.open, state.message) for gate, state in action.gates.items()} == dict.fromkeys(
        names.GATES, (True, "boot b")
    )


@pytest.mark.parametrize(
    "shut",
    [
        pod("p", Stage.UNREADY, containers=(waiting("CrashLoopBackOff"),), runtime=SILENT),
        pod("p", Stage.UNREADY, containers=(running(ready=False),), runtime=engine(Phase.LOADING, boot="boot-2")),
        pod("p", containers=(running(),), runtime=engine(Phase.LOADING, boot="boot-2")),
    ],
    ids=["no process", "another process loads", "another process loads, the kubelet has not noticed"],
)
def test_closed_when_the_process_is_gone(shut):
    """What was ready is gone, whatever the gates say."""
    action = admit(shut)
    assert isinstance(action, SetGates)
    assert action.why is Why.RESTARTED
    assert not any(state.open for state in action.gates.values())


@pytest.mark.parametrize("stage", [Stage.SERVING, Stage.DRAINING])
def test_a_drain_that_nobody_wants_is_cancelled(stage):
    """First the engine takes requests again, then, at the next look, the gate opens."""
    assert isinstance(admit(pod("p", stage, runtime=engine(draining=True))), Undrain)
