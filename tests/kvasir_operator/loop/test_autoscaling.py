"""The real loop on a cluster in memory: load makes replicas, its end takes them away, whatever befalls the operator."""

import json
import logging

import pytest

from kvasir_operator.api.v1alpha1 import InferenceServiceStatus
from kvasir_operator.scaling.record import read_decisions, replay
from tests.kvasir_operator.loop.harness import Loop

SCALING = {
    "minReplicas": 1,
    "maxReplicas": 3,
    "scaleUp": {"maxRatePerMinute": 1},
    "scaleDown": {"stabilization": "60s", "maxRatePerMinute": 1},
}


async def under_load(loop: Loop, blocks: int, turns: int, seconds: float = 5.0) -> None:
    """Requests that hold so many of each engine's 100 blocks, for a while."""
    for _ in range(turns):
        loop.kubelet()
        for engine in loop.cluster.engines.values():
            engine.inflight = 0 if engine.draining else blocks
        wait = await loop.turn()
        while wait == 0.0:
            loop.kubelet()
            wait = await loop.turn()
        loop.clock.move(seconds)


def replicas(loop: Loop) -> int:
    return int(loop.service()["spec"]["replicas"])


async def test_replicas_follow_the_load_and_fall_back() -> None:
    """From one to three at one a minute, and back after the window; every decision can be made again."""
    loop = Loop(replicas=1, scaling=SCALING)
    await loop.start()
    await loop.settle()
    await under_load(loop, blocks=99, turns=40)
    assert replicas(loop) == 3
    assert len(loop.pods()) == 3
    assert loop.condition("ScalingActive")["reason"] == "ScalingOnLoad"
    await under_load(loop, blocks=0, turns=60)
    assert replicas(loop) == 1
    assert len(loop.pods()) == 1
    status = InferenceServiceStatus.model_validate(loop.service()["status"])
    assert status.scaling is not None
    assert [(each.from_, each.to) for each in reversed(status.scaling.history)] == [(1, 2), (2, 3), (3, 2), (2, 1)]
    assert all(replay(each).same for each in status.scaling.history)


async def test_an_operator_that_dies_between_decision_and_act_takes_its_own_number_for_its_own() -> None:
    """The decision is in the status, the replicas are not set: the next one sets them, and nobody else is suspected."""
    for writes in (0, 1, 2):
        loop = Loop(replicas=1, scaling=SCALING | {"maxReplicas": 2})
        await loop.start()
        await loop.settle()
        await loop.turn()
        for engine in loop.cluster.engines.values():
            engine.inflight = 99
        loop.clock.move(10)
        loop.cluster.faults.die_after_writes = writes
        await under_load(loop, blocks=99, turns=14)
        assert replicas(loop) == 2
        assert loop.condition("ScalingActive")["status"] == "True"
        assert len(loop.service()["status"]["scaling"]["history"]) == 1


async def test_a_number_that_somebody_else_set_stays() -> None:
    """Without records of /scale, as before Kubernetes 1.22: also after the operator was started anew."""
    loop = Loop(replicas=1, scaling=SCALING)
    await loop.start()
    await loop.settle()
    await loop.turn()
    loop.change(replicas=2)
    await loop.settle()
    await loop.start()
    await under_load(loop, blocks=99, turns=10)
    assert replicas(loop) == 2
    assert loop.condition("ScalingActive")["reason"] == "OwnedByOther"
    loop.change(scaling=None)
    await under_load(loop, blocks=99, turns=2)
    loop.change(scaling=SCALING)
    await under_load(loop, blocks=99, turns=10)
    assert replicas(loop) == 3


async def test_one_deaf_replica_neither_counts_as_idle_nor_freezes_the_others() -> None:
    """Its operator port answers no more: the others still scale up, and it is no reason to go."""
    loop = Loop(replicas=2, scaling=SCALING)
    await loop.start()
    await loop.settle()
    await under_load(loop, blocks=50, turns=5)
    loop.scraper.deaf.add(loop.pods()[0].uid)
    await under_load(loop, blocks=10, turns=40)
    assert replicas(loop) == 2
    await under_load(loop, blocks=99, turns=30)
    assert replicas(loop) == 2  # one that answers asks for 1.3: what it cannot see adds nothing
    loop.scraper.deaf.clear()
    await under_load(loop, blocks=99, turns=30)
    assert replicas(loop) == 3


async def test_decisions_are_lines_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """With all that they were made of, under a key of its own."""
    loop = Loop(replicas=1, scaling=SCALING)
    await loop.start()
    await loop.settle()
    with caplog.at_level(logging.INFO):
        await under_load(loop, blocks=99, turns=14)
    [line] = [each for each in caplog.records if hasattr(each, "scaling")]
    assert line.getMessage().startswith("Scaling from 1 to 2 replicas: Up: KVCache asks for 1.1")
    assert line.scaling["service"] == "team/tiny"
    [decision] = read_decisions([json.dumps({"scaling": line.scaling})])
    assert replay(decision).same
