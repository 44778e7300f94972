"""How many pods, and which: scaling, replacement, backoff."""

from datetime import timedelta

import pytest

from kvasir_operator.planning.actions import Why
from kvasir_operator.planning.replicas import backoff, decide, wanted_replicas
from kvasir_operator.planning.state import Pod, PodPhase, Stage, Termination, Timings
from tests.kvasir_operator.planning.builders import (
    NOW,
    SILENT,
    ago,
    closed,
    engine,
    gates,
    pod,
    running,
    service,
    snapshot,
)


def decision(pods, **spec):
    seen = snapshot(pods, **spec)
    assert seen.spec is not None
    return decide(seen, seen.spec, NOW)


@pytest.mark.parametrize(
    ("replicas", "scaling", "wanted"),
    [
        (3, None, 3),
        (0, None, 0),
        (1, {"minReplicas": 2, "maxReplicas": 8}, 2),
        (9, {"minReplicas": 2, "maxReplicas": 8}, 8),
        (5, {"minReplicas": 2, "maxReplicas": 8}, 5),
        (0, {"minReplicas": 0, "maxReplicas": 8}, 0),
    ],
)
def test_wanted_replicas(replicas, scaling, wanted):
    """`replicas` counts, within the bounds of `scaling`."""
    spec = {"replicas": replicas} | ({"scaling": scaling} if scaling else {})
    assert wanted_replicas(service(**spec).spec) == wanted


@pytest.mark.parametrize(
    ("replicas", "pods", "created", "removed", "recalled"),
    [
        (1, [], 1, [], []),
        (3, [pod("a")], 2, [], []),
        (1, [pod("a")], 0, [], []),
        (2, [pod("a"), pod("b", Stage.STARTING)], 0, [], []),
        (2, [pod("a"), pod("b", Stage.LEAVING)], 1, [], []),
        (1, [pod("a"), pod("b", Stage.DRAINING)], 0, [], []),
        (1, [pod("a"), pod("b", Stage.STARTING)], 0, ["b"], []),
        (1, [pod("a", age_s=10), pod("b", age_s=99)], 0, ["a"], []),
        (0, [pod("a"), pod("b")], 0, ["a", "b"], []),
        (2, [pod("a"), pod("b", Stage.DRAINING)], 0, [], ["b"]),
        (3, [pod("a"), pod("b", Stage.DRAINING)], 1, [], ["b"]),
        (2, [pod("a"), pod("b", Stage.DRAINING, containers=())], 0, [], ["b"]),
        (2, [pod("a"), pod("b", Stage.DRAINING, containers=(), ip="")], 1, [], []),
    ],
)
def test_scaling(replicas, pods, created, removed, recalled):
    """Missing pods are made, surplus ones go, and those that drain are called back before new ones are made."""
    found = decision(pods, replicas=replicas)
    assert len(found.create) == created
    assert [(each.name, why) for each, why in found.remove] == [(name, Why.SCALE_DOWN) for name in removed]
    assert [each.name for each in found.recall] == recalled


def test_the_latest_to_drain_is_called_back_first():
    """The one that began to drain last has most of its time left."""
    early = pod("early", Stage.DRAINING, conditions=gates() | closed("Draining", ago(60)))
    late = pod("late", Stage.DRAINING, conditions=gates() | closed("Draining", ago(5)))
    assert [each.name for each in decision([early, late], replicas=1).recall] == ["late"]


@pytest.mark.parametrize(("attempt", "seconds"), [(0, 0), (1, 0), (2, 10), (3, 20), (4, 40), (7, 300), (60, 300)])
def test_backoff(attempt, seconds):
    """At once for the first replacement, then 10 s, 20 s … 300 s."""
    assert backoff(attempt, Timings()) == timedelta(seconds=seconds)


def failed(name: str, *, attempt: int = 0, ended_s: float = 1.0, lived_s: float = 5.0, **fields) -> Pod:
    end = Termination(1, finished_at=ago(ended_s))
    container = running().__class__("runtime", ended=end)
    return pod(
        name,
        Stage.FINISHED,
        age_s=ended_s + lived_s,
        attempt=attempt,
        containers=(container,),
        runtime=SILENT,
        **fields,
    )


@pytest.mark.parametrize(
    ("dead", "created", "due_s"),
    [
        (failed("x"), [(Why.REPLACE, 1, "x")], None),
        (failed("x", attempt=1, ended_s=3), [], 7),
        (failed("x", attempt=1, ended_s=10), [(Why.REPLACE, 2, "x")], None),
        (failed("x", attempt=9, ended_s=100), [], 200),
        (failed("x", attempt=9, lived_s=700), [(Why.REPLACE, 1, "x")], None),
    ],
)
def test_what_ended_is_replaced_with_backoff(dead, created, due_s):
    """The wait grows with the failures in a row; a pod that lived long starts the count anew."""
    found = decision([dead], replicas=1)
    assert [(each.why, each.attempt, each.replaces) for each in found.create] == created
    assert found.due == (None if due_s is None else NOW + timedelta(seconds=due_s))
    assert found.clear == ()


def test_an_ended_pod_is_cleared_away_once_it_is_replaced():
    """Not before: it holds the count of attempts."""
    assert [each.name for each in decision([failed("x"), pod("a", Stage.STARTING)], replicas=1).clear] == ["x"]
    assert [each.name for each in decision([failed("x", revision="old")], replicas=1).clear] == ["x"]


def test_healthy_replicas_are_not_held_up_by_failed_ones():
    """Of three missing pods one waits for its backoff; two are made at once."""
    found = decision([failed("x", attempt=5, ended_s=1)], replicas=3)
    assert [each.attempt for each in found.create] == [0, 0]
    assert found.due is not None


def test_a_pod_that_vanished_is_a_replacement_and_not_a_scale_up():
    """The last status tells them apart."""
    assert decision([], replicas=1, status={"desiredReplicas": 1}).create[0].why is Why.REPLACE
    assert decision([], replicas=2, status={"desiredReplicas": 1}).create[0].why is Why.SCALE_UP
    assert decision([], replicas=2).create[0].why is Why.SCALE_UP


def test_succeeded_pods_are_replaced_too():
    """An engine is to run for ever: a pod that ended well ended all the same."""
    gone = pod("x", Stage.FINISHED, phase=PodPhase.SUCCEEDED)
    assert len(decision([gone], replicas=1).create) == 1


def test_a_busy_replica_outlives_an_idle_one():
    """Of equal caches the one with fewer requests goes."""
    busy, idle = pod("a", runtime=engine(inflight=3)), pod("b", runtime=engine())
    assert [each.name for each, _ in decision([busy, idle], replicas=1).remove] == ["b"]
