"""The tasks of the loop: woken, surviving errors, ended in time."""

import asyncio
from typing import Any, cast

import pytest

from kvasir_operator import sync
from kvasir_operator.cluster import EVENTS, PODS, SECRETS, Cluster
from kvasir_operator.errors import ApiError, LeadershipLostError
from kvasir_operator.planning.actions import CreatePod, Why
from kvasir_operator.reconciler import EAGER_TURNS
from tests.kvasir_operator.loop.fake_cluster import inference_service, service_address
from tests.kvasir_operator.loop.harness import KEY, Loop


async def until(condition: Any, seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the loop under test tells nobody what it does
            await asyncio.sleep(0.001)


@pytest.fixture
async def loop() -> Loop:
    made = Loop()
    await made.start()
    return made


async def test_nothing_is_done_before_the_start(loop: Loop) -> None:
    """Events fill the cache, and that is all."""
    loop.change(replicas=2)
    await asyncio.sleep(0.01)
    assert loop.pods() == []


async def test_an_event_wakes_its_service(loop: Loop) -> None:
    """No timer is needed: the clock of this test stands still."""
    loop.reconciler.start()
    await until(lambda: len(loop.pods()) == 1)
    loop.change(replicas=3)
    await until(lambda: len(loop.pods()) == 3)
    await loop.reconciler.stop()


async def test_a_new_service_gets_a_task_and_a_deleted_one_loses_it(loop: Loop) -> None:
    """Nothing is kept of a service that has gone."""
    loop.reconciler.start()
    loop.cluster.store(service_address("other"), inference_service("other"), "ADDED")
    await until(lambda: len(loop.reconciler._tasks) == 2)
    await until(lambda: len(loop.pods()) == 2)
    loop.cluster.vanish(service_address("other"))
    await until(lambda: len(loop.reconciler._tasks) == 1)
    assert list(loop.reconciler._services) == [KEY]
    assert list(loop.observer._samples) == [KEY]
    await loop.reconciler.stop()
    assert loop.reconciler._tasks == {}


async def test_an_error_ends_no_task(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The turn is tried again; the error is logged and counted."""
    failures = iter([ValueError("a bug"), ApiError(500, "", "sorry")])
    real = loop.observer.look

    async def look(*args: Any) -> Any:
        error = next(failures, None)
        if error is not None:
            raise error
        return await real(*args)

    monkeypatch.setattr(loop.observer, "look", look)
    monkeypatch.setattr("kvasir_operator.backoff.Backoff.wait", lambda *_: 0.001)
    loop.reconciler.start()
    await until(lambda: len(loop.pods()) == 1)
    await loop.reconciler.stop()


async def test_lost_leadership_ends_the_process(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """No write is tried again without it."""

    def lost() -> None:
        raise LeadershipLostError("gone")

    monkeypatch.setattr(loop.cluster.faults, "before_write", lost)
    loop.reconciler.start()
    with pytest.raises(LeadershipLostError):
        await asyncio.wait_for(loop.reconciler.failed, 30)
    await loop.reconciler.stop()


async def test_a_create_that_was_done_already_is_a_success(loop: Loop) -> None:
    """The answer was lost: the same create finds its pod, and no second one is made."""
    snapshot = await loop.observer.look(KEY)
    assert snapshot is not None
    create = CreatePod("tiny-x", snapshot.revision, Why.SCALE_UP)
    for _ in range(2):
        loop.lost_events = 9
        (outcome,) = await loop.reconciler._executor.execute(snapshot, [create], "token")
        assert outcome.error is None
    assert [each["metadata"]["name"] for each in loop.store.of_service(KEY, PODS)] == ["tiny-x"]


async def test_a_failed_write_does_not_stop_the_others(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quota that is full is told; Service and Secret are made all the same."""
    real = loop.cluster.create

    async def create(kind: Any, namespace: str, body: Any, *form: str) -> Any:
        if kind == PODS:
            raise ApiError(403, "Forbidden", "exceeded quota: gpus")
        return await real(kind, namespace, body, *form)

    monkeypatch.setattr(loop.cluster, "create", create)
    for _ in range(4):
        await loop.turn()
        loop.clock.move(5)
    degraded = loop.condition("Degraded")
    assert (degraded["reason"], "exceeded quota: gpus" in degraded["message"]) == ("PodRefused", True)
    assert loop.condition("Ready")["reason"] == "PodRefused"
    assert "PodRefused" in {event["reason"] for event in loop.cluster.all(EVENTS)}
    monkeypatch.undo()
    await loop.settle()
    await loop.turn()
    assert loop.condition("Degraded")["status"] == "False"


async def test_a_write_that_succeeds_for_ever_is_slowed_down(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something changes the Service back each time: the operator does not run hot."""
    await loop.settle()
    monkeypatch.setattr("kvasir_operator.observe.covers", lambda *_: False)
    waits = [await loop.turn() or 0.0 for _ in range(9)]
    assert waits.count(0.0) <= EAGER_TURNS
    assert waits[-1] > 1


async def test_an_error_that_keeps_coming_back_is_told(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in planning shows in the conditions, not in the log alone."""
    await loop.settle()

    def buggy(*_: Any) -> None:
        raise KeyError("missing")

    monkeypatch.setattr("kvasir_operator.reconciler.make_plan", buggy)
    for _ in range(4):
        await loop.turn()
    degraded = loop.condition("Degraded")
    assert (degraded["status"], degraded["reason"]) == ("True", "InternalError")
    assert "KeyError" in degraded["message"]
    monkeypatch.undo()
    await loop.turn()
    assert loop.condition("Degraded")["status"] == "False"


async def test_a_secret_that_may_not_be_read_is_told(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing rights are a matter for the conditions; nothing is made in place of what cannot be seen."""
    real = loop.cluster.get

    async def get(kind: Any, namespace: str, name: str) -> Any:
        if kind == SECRETS:
            raise ApiError(403, "Forbidden", 'secrets "tiny-admin" is forbidden')
        return await real(kind, namespace, name)

    monkeypatch.setattr(loop.cluster, "get", get)
    for _ in range(3):
        await loop.turn()
    assert loop.cluster.all(SECRETS) == []
    assert "is forbidden" in loop.condition("Degraded")["message"]


async def test_the_crd_is_waited_for(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is often installed in the same moment; other errors end the start."""
    answers = iter([ApiError(404, "NotFound", "no such kind"), ApiError(404, "NotFound", "no such kind"), None])

    async def pages(*_: Any, **__: Any) -> Any:
        error = next(answers)
        if error is not None:
            raise error
        yield [], "1"

    monkeypatch.setattr(loop.cluster, "pages", pages)
    monkeypatch.setattr(sync, "CRD_SECONDS", 0.0)
    await asyncio.wait_for(sync.wait_for_crd(cast("Cluster", loop.cluster), []), 30)
    answers = iter([ApiError(403, "Forbidden", "no")])
    with pytest.raises(ApiError, match="no"):
        await sync.wait_for_crd(cast("Cluster", loop.cluster), [])
