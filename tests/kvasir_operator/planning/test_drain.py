"""How a pod leaves: the table of `planning.drain`, line by line."""

from datetime import timedelta

import pytest

from kvasir_operator.planning.actions import DeletePod, Drain, SetGates, Why
from kvasir_operator.planning.drain import dismiss, drain
from kvasir_operator.planning.state import PodCondition, Stage, Timings
from kvasir_operator.resources import names
from tests.kvasir_operator.planning.builders import NOW, SILENT, ago, closed, engine, gates, pod, running

TIMEOUT = 60.0
READY, UNREADY = {"Ready": PodCondition("True")}, {"Ready": PodCondition("False")}


def leaving(since_s: float, *, ready: bool = False, **fields):
    """A pod whose gate was closed so long ago."""
    conditions = gates() | closed("Draining", ago(since_s)) | (READY if ready else UNREADY)
    return pod("p", Stage.DRAINING, conditions=conditions, **fields)


@pytest.mark.parametrize(
    ("gone", "action"),
    [
        (pod("p", Stage.STARTING), DeletePod("p", "p-uid", Why.SCALE_DOWN)),
        (pod("p", Stage.STARTING, containers=(), ip="", runtime=SILENT), DeletePod("p", "p-uid", Why.SCALE_DOWN)),
    ],
)
def test_a_pod_without_requests_is_deleted(gone, action):
    """It never was among the endpoints."""
    assert dismiss(gone, Why.SCALE_DOWN).action == action


@pytest.mark.parametrize(
    "gone",
    [pod("p"), pod("p", Stage.UNREADY), pod("p", Stage.STARTING, runtime=engine(inflight=1))],
    ids=["serves", "served", "holds a request all the same"],
)
def test_a_pod_that_may_have_requests_first_leaves_the_endpoints(gone):
    """Its serving gate is closed, and only that one."""
    action = dismiss(gone, Why.SCALE_DOWN).action
    assert isinstance(action, SetGates)
    assert list(action.gates) == [names.SERVING_GATE]
    assert not action.gates[names.SERVING_GATE].open
    assert action.gates[names.SERVING_GATE].reason == "Draining"


def deleted(why: Why) -> DeletePod:
    return DeletePod("p", "p-uid", why)


@pytest.mark.parametrize(
    ("leaver", "action", "due_s"),
    [
        (leaving(1, containers=(), ip=""), deleted(Why.NO_REQUESTS), None),
        (leaving(61), deleted(Why.DRAIN_DEADLINE), None),
        (leaving(61, runtime=SILENT), deleted(Why.DRAIN_DEADLINE), None),
        (leaving(20, runtime=SILENT), None, 40),
        (leaving(1, runtime=engine()), None, 2),
        (leaving(4, ready=True, runtime=engine()), None, 11),
        (leaving(16, ready=True, runtime=engine()), Drain("p", "p-uid", "10.0.0.1", 44.0, Why.LEFT_ENDPOINTS), 44),
        (leaving(4, runtime=engine()), Drain("p", "p-uid", "10.0.0.1", 56.0, Why.LEFT_ENDPOINTS), 56),
        (leaving(4, runtime=engine(draining=True, inflight=2)), None, 56),
        (leaving(4, runtime=engine(draining=True)), deleted(Why.DRAINED), None),
    ],
    ids=[
        "no process",
        "deadline",
        "deadline though unknown",
        "unknown is not empty",
        "endpoints settle",
        "kubelet has not seen it",
        "kubelet will not see it",
        "settled",
        "requests in flight",
        "empty",
    ],
)
def test_drain(leaver, action, due_s):
    """A pod is deleted when nothing can be lost any more, or when its time is over."""
    found = drain(leaver, TIMEOUT, Timings(), NOW)
    assert found.action == action
    assert found.due == (None if due_s is None else NOW + timedelta(seconds=due_s))


def test_an_engine_that_was_started_anew_is_drained_anew():
    """What an earlier process was told does not count: the answer of the present one does."""
    restarted = leaving(10, containers=(running(restarts=1),), runtime=engine(boot="boot-2"))
    assert isinstance(drain(restarted, TIMEOUT, Timings(), NOW).action, Drain)
