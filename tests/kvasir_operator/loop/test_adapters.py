"""Adapters in the loop: told pod by pod, told again, swapped, unloaded, and never in the way of the service."""

from typing import Any

import pytest

from tests.kvasir_operator.loop.fake_cluster import Engine, Manifest
from tests.kvasir_operator.loop.harness import Loop

BUCKET = "s3://bucket"


def adapters(*names: str, **fields: Any) -> list[Manifest]:
    return [{"name": name, "source": {"uri": f"{BUCKET}/{name}"}, **fields} for name in names]


async def started(*names: str, missing: frozenset[str] = frozenset(), replicas: int = 2, **spec: Any) -> Loop:
    """A service with adapters, some of which are not where they should be."""
    loop = Loop(adapters=adapters(*names), replicas=replicas, **spec)
    loop.scraper.sources = {f"{BUCKET}/{name}": f"{name}-1" for name in names if name not in missing}
    await loop.start()
    await loop.settle()
    await loop.turn()
    return loop


def engines(loop: Loop) -> list[Engine]:
    return list(loop.cluster.engines.values())


def rows(loop: Loop) -> dict[str, Manifest]:
    return {row["name"]: row for row in loop.service()["status"]["adapters"]}


def gate(loop: Loop, kind: str) -> list[tuple[str, str]]:
    found = [pod.condition(kind) for pod in loop.pods()]
    return [(each.reason, each.message.partition("; ")[2]) for each in found]


async def test_every_replica_serves_them() -> None:
    """Told once, gates opened with how it went, counted in the status."""
    loop = await started("a", "b")
    assert [engine.serves for engine in engines(loop)] == [{"a": "a-1", "b": "b-1"}] * 2
    assert [engine.puts for engine in engines(loop)] == [1, 1]
    assert gate(loop, "kvasir.dev/adapters") == [("AdaptersLoaded", "2 of 2 adapters are loaded")] * 2
    assert rows(loop)["a"] == {
        "name": "a",
        "digest": "a-1",
        "readyReplicas": 2,
        "updatedReplicas": 2,
        "replicas": 2,
    }
    assert loop.condition("AdaptersReady")["reason"] == "AdaptersLoaded"


async def test_five_broken_ones_of_a_hundred() -> None:
    """95 are served, the service is Ready, each broken one says why; they are tried again later and later."""
    names = [f"a{index:02}" for index in range(100)]
    loop = await started(*names, missing=frozenset(names[:5]), replicas=1)
    found = rows(loop)
    assert [name for name in names if found[name].get("cause")] == names[:5]
    assert found["a00"]["cause"] == "SourceUnreachable"
    assert sum(found[name]["readyReplicas"] for name in names) == 95
    assert loop.condition("Ready")["status"] == "True"
    ready = loop.condition("AdaptersReady")
    assert (ready["status"], ready["reason"]) == ("False", "SourceUnreachable")
    assert ready["message"].startswith("5 of 100 failed: a00: ")
    [engine] = engines(loop)
    await loop.run(200, step=4)
    assert 5 <= engine.puts <= 7  # after 10, 20, 40, 80 s
    loop.scraper.sources |= {f"{BUCKET}/{name}": "mended" for name in names[:5]}
    await loop.run(310, step=10)
    assert loop.condition("AdaptersReady")["status"] == "True"


async def test_a_source_that_is_down_keeps_nobody_out() -> None:
    """It never answers: after two minutes the replica takes traffic without it, and says so."""
    loop = Loop(adapters=adapters("a"), replicas=1)
    loop.scraper.slow = {f"{BUCKET}/a"}
    await loop.start()
    await loop.run(60)
    assert loop.condition("Ready")["status"] == "False"
    assert [reason for reason, _ in gate(loop, "kvasir.dev/adapters")] == ["AdaptersLoading"]
    await loop.run(90)
    assert loop.condition("Ready")["status"] == "True"
    assert gate(loop, "kvasir.dev/adapters") == [("AdaptersLate", "0 of 1 adapters are loaded")]
    assert loop.condition("AdaptersReady")["reason"] == "AdaptersLoading"


async def test_an_operator_that_ends_while_they_load_waits_no_longer() -> None:
    """When the wait began is in the cluster."""
    loop = Loop(adapters=adapters("a"), replicas=1)
    loop.scraper.slow = {f"{BUCKET}/a"}
    await loop.start()
    await loop.run(70)
    await loop.start()
    await loop.run(70)
    assert loop.condition("Ready")["status"] == "True"


async def test_a_process_that_is_new_is_told_again() -> None:
    """By what it says that it was told."""
    loop = await started("a", replicas=1)
    [pod] = loop.cluster.pods()
    loop.cluster.crash(pod)
    await loop.settle()
    [engine] = engines(loop)
    assert (engine.serves, engine.puts) == ({"a": "a-1"}, 1)


async def test_a_new_version_takes_the_name() -> None:
    """When the annotation says so, or by the clock; the gate stays open; what cannot be had leaves the old one."""
    loop = await started("a", replicas=1)
    [engine] = engines(loop)
    loop.scraper.sources[f"{BUCKET}/a"] = "a-2"
    await loop.run(30)
    assert engine.serves == {"a": "a-1"}
    loop.annotate(adapters_version="2")
    await loop.run(5)
    assert engine.serves == {"a": "a-2"}
    loop.change(adapters=adapters("a", refreshInterval="60s"))
    loop.scraper.sources[f"{BUCKET}/a"] = "a-3"
    await loop.run(70)
    assert engine.serves == {"a": "a-3"}
    del loop.scraper.sources[f"{BUCKET}/a"]
    await loop.run(70)
    assert engine.serves == {"a": "a-3"}
    assert "the version before, a-3, goes on" in rows(loop)["a"]["message"]
    assert all(pod.ready for pod in loop.pods())


async def test_removed_adapters_leave() -> None:
    """Others stay, nothing rolls; the first and the last one change what engines are started with."""
    loop = await started("a", "b")
    before = {pod.uid for pod in loop.pods()}
    loop.change(adapters=adapters("b"))
    await loop.settle()
    assert {pod.uid for pod in loop.pods()} == before
    assert [engine.serves for engine in engines(loop)] == [{"b": "b-1"}] * 2
    loop.change(adapters=[])
    await loop.settle()
    assert not {pod.uid for pod in loop.pods()} & before


@pytest.mark.parametrize("writes", range(8))
async def test_killed_at_each_write(writes: int) -> None:
    """Whenever the operator ends, the next comes to the same."""
    loop = Loop(adapters=adapters("a"), replicas=2)
    loop.scraper.sources = {f"{BUCKET}/a": "a-1"}
    await loop.start()
    loop.cluster.faults.die_after_writes = writes
    await loop.settle()
    assert [engine.serves for engine in engines(loop)] == [{"a": "a-1"}] * 2
