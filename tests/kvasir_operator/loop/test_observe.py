"""What is observed, how often, and what is not believed."""

from typing import Any

import pytest

from kvasir_operator.cluster import EVENTS, SECRETS
from kvasir_operator.observe import is_stuck
from kvasir_operator.planning.state import NOT_ASKED, Container, ObjectState, Stage, Unknown
from tests.kvasir_operator.loop.fake_cluster import address_of
from tests.kvasir_operator.loop.harness import KEY, Loop
from tests.kvasir_operator.planning.builders import NOW, SILENT, pod, running, waiting


@pytest.fixture
async def loop() -> Loop:
    made = Loop()
    await made.start()
    await made.settle()
    return made


def count_readings(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []
    real = loop.scraper.state

    async def state(ip: str, token: str) -> Any:
        asked.append(ip)
        return await real(ip, token)

    monkeypatch.setattr(loop.scraper, "state", state)
    return asked


async def test_an_engine_that_serves_is_not_asked_for_every_event(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last answer counts for as long as the settings say."""
    asked = count_readings(loop, monkeypatch)
    loop.clock.move(60)
    for _ in range(5):
        await loop.observer.look(KEY)
    assert len(asked) == 1
    loop.clock.move(5)
    await loop.observer.look(KEY)
    assert len(asked) == 2


async def test_a_pod_without_a_process_is_not_asked(loop: Loop) -> None:
    """And what it said before does not count any more."""
    ended = loop.cluster.pods()[0]
    ended["status"]["containerStatuses"][0]["state"] = {"waiting": {"reason": "CrashLoopBackOff"}}
    loop.cluster.update(ended)
    snapshot = await loop.observer.look(KEY)
    assert snapshot is not None
    assert snapshot.pods[0].runtime == NOT_ASKED


async def test_a_silent_pod_is_looked_up(loop: Loop) -> None:
    """Its end was missed: after three readings without an answer the API server is asked."""
    loop.lost_events = 1
    loop.cluster.vanish(address_of(loop.cluster.pods()[0]))
    seen = []
    for _ in range(4):
        loop.clock.move(10)
        snapshot = await loop.observer.look(KEY)
        assert snapshot is not None
        seen.append(len(snapshot.pods))
    assert seen == [1, 1, 0, 0]


async def test_a_silent_pod_that_is_there_stays(loop: Loop) -> None:
    """Unknown is not gone."""
    loop.scraper.deaf = set(loop.cluster.engines)
    for _ in range(5):
        loop.clock.move(10)
        await loop.turn()
    snapshot = await loop.observer.look(KEY)
    assert snapshot is not None
    assert isinstance(snapshot.pods[0].runtime, Unknown)
    assert snapshot.pods[0].stage is Stage.SERVING


async def test_a_secret_that_is_deleted_is_made_anew(loop: Loop) -> None:
    """When an engine refuses the token it is looked for at once, else after a while."""
    loop.cluster.vanish((SECRETS, "team", "tiny-admin"))
    await loop.turn()
    assert loop.cluster.all(SECRETS) == []
    loop.clock.move(601)
    await loop.turn()
    assert len(loop.cluster.all(SECRETS)) == 1


async def test_a_secret_that_cannot_be_used_is_told(loop: Loop) -> None:
    """Somebody took the token out of it: it is not overwritten."""
    (secret,) = loop.cluster.all(SECRETS)
    secret["data"] = {}
    loop.clock.move(601)
    for _ in range(3):
        await loop.turn()
        loop.clock.move(5)
    snapshot = await loop.observer.look(KEY)
    assert snapshot is not None
    assert snapshot.secret is ObjectState.OUTDATED
    assert "delete it" in loop.condition("Degraded")["message"]


@pytest.mark.parametrize(
    ("found", "stuck"),
    [
        (pod("p", Stage.STARTING, containers=(waiting("ContainerCreating"),), runtime=SILENT), True),
        (pod("p", Stage.STARTING, containers=(), runtime=SILENT), True),
        (pod("p", Stage.STARTING, containers=(waiting("ContainerCreating"),), age_s=2, runtime=SILENT), False),
        (pod("p", Stage.STARTING, containers=(waiting("ErrImagePull"),), runtime=SILENT), False),
        (pod("p", Stage.STARTING, node="", containers=(), runtime=SILENT), False),
        (pod("p", Stage.STARTING), False),
        (pod("p", Stage.STARTING, containers=(Container("fetch", init=True, running=True),)), False),
        (pod("p", Stage.STARTING, containers=(running(ready=False, restarts=1),)), True),
        (pod("p"), False),
        (pod("p", Stage.LEAVING), False),
    ],
)
def test_when_events_of_a_pod_are_read(found: Any, stuck: bool) -> None:
    """It should have a process, has none, and nothing else says why; or it was restarted."""
    assert is_stuck(found, NOW) is stuck


async def test_what_only_events_tell_is_told() -> None:
    """A volume that cannot be mounted: the pod's status says nothing of it."""
    loop = Loop()
    await loop.start()
    await loop.turn()
    (made,) = loop.cluster.pods()
    loop.cluster.start_pod(made)
    event = {
        "metadata": {"name": "e", "namespace": "team", "uid": "e"},
        "type": "Warning",
        "reason": "FailedMount",
        "message": 'MountVolume.SetUp failed for volume "source-secret" : secret "keys" not found',
    }
    loop.cluster.store((EVENTS, "team", "e"), event, "ADDED")
    for _ in range(3):
        loop.clock.move(2)
        await loop.turn()
    assert loop.condition("Ready")["reason"] == "SecretNotFound"
    assert '"keys" not found' in loop.service()["status"]["lastFailure"]["message"]
