"""Who acts: one at a time, and nobody on a Lease that has run out."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from kvasir_operator import leader
from kvasir_operator.cluster import LEASES, Kind
from kvasir_operator.errors import ApiError, LeadershipLostError
from kvasir_operator.leader import Leadership, LeaseLock, Unelected, lead
from kvasir_operator.settings import Settings
from tests.kvasir_operator.loop.fake_cluster import merge

SETTINGS = Settings(
    lease_duration_seconds=3, lease_renew_deadline_seconds=2, lease_retry_seconds=1, namespace="kvasir-system"
)


class Leases:
    """The API server's part of an election: one Lease, versions, conflicts; or no answer at all."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.down = False
        self.version = 0

    async def get(self, kind: Kind, namespace: str, name: str) -> dict[str, Any]:
        self._answer()
        if self.lease is None:
            raise ApiError(404, "NotFound", "no Lease")
        return {"metadata": dict(self.lease["metadata"]), "spec": dict(self.lease["spec"])}

    async def create(self, kind: Kind, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        self._answer()
        assert (kind, namespace) == (LEASES, "kvasir-system")
        if self.lease is not None:
            raise ApiError(409, "AlreadyExists", "there is one")
        self.lease = {"metadata": {}, "spec": dict(body["spec"])}
        return self._stored()

    async def patch(self, kind: Kind, namespace: str, name: str, body: dict[str, Any], content_type: str) -> Any:
        self._answer()
        assert self.lease is not None
        if body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", "somebody was faster")
        merge(self.lease, body)
        return self._stored()

    @property
    def holder(self) -> str | None:
        return self.lease["spec"].get("holderIdentity") if self.lease is not None else None

    def _answer(self) -> None:
        if self.down:
            raise ApiError(0, "NoAnswer", "down")

    def _stored(self) -> dict[str, Any]:
        assert self.lease is not None
        self.version += 1
        self.lease["metadata"]["resourceVersion"] = str(self.version)
        return self.lease


@pytest.fixture
def leases(monkeypatch: pytest.MonkeyPatch) -> Leases:
    """Leases in memory; sleeping takes no time, so that an election is as fast as it can be."""
    found = Leases()
    monkeypatch.setattr(leader, "Cluster", lambda *_, **__: found)
    real = asyncio.sleep

    async def soon(_: float) -> None:
        await real(0.001)

    monkeypatch.setattr("kubernetes.aio.leaderelection.leaderelection.asyncio.sleep", soon)
    return found


async def electing(
    identity: str, act: Callable[[], Awaitable[None]], stop: asyncio.Event, leadership: Leadership | None = None
) -> None:
    await lead(None, SETTINGS, identity, leadership or Leadership(2.0), stop, act)


async def test_one_leads_and_lets_go(leases: Leases) -> None:
    """The Lease bears its name while it acts, and nobody's afterwards."""
    holders: list[str | None] = []

    async def act() -> None:
        holders.append(leases.holder)

    await electing("a", act, asyncio.Event())
    assert (holders, leases.holder) == (["a"], None)
    assert leases.lease is not None
    assert leases.lease["spec"]["leaseDurationSeconds"] == 3
    assert leases.lease["spec"]["renewTime"].endswith("Z")


async def test_two_never_act_at_once(leases: Leases) -> None:
    """The second begins when the first has let go, at once."""
    acting: set[str] = set()
    begun = asyncio.Event()
    most = 0

    def make(name: str, until: asyncio.Event) -> Callable[[], Awaitable[None]]:
        async def act() -> None:
            nonlocal most
            acting.add(name)
            most = max(most, len(acting))
            begun.set()
            await until.wait()
            acting.discard(name)

        return act

    done = asyncio.Event()
    both = asyncio.gather(*(electing(name, make(name, done), asyncio.Event()) for name in "ab"))
    await begun.wait()
    done.set()
    await asyncio.wait_for(both, 30)
    assert most == 1


async def test_a_leader_that_cannot_renew_ends(leases: Leases, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it does is cancelled, and it says so."""
    cancelled = asyncio.Event()
    seconds = itertools.count(1000)
    monkeypatch.setattr(
        "kubernetes.aio.leaderelection.leaderelection.time", SimpleNamespace(time=lambda: next(seconds))
    )

    async def act() -> None:
        leases.down = True
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with pytest.raises(LeadershipLostError):
        await asyncio.wait_for(electing("a", act, asyncio.Event()), 30)
    assert cancelled.is_set()


async def test_what_ends_the_work_is_passed_on(leases: Leases) -> None:
    """With the Lease let go."""

    async def act() -> None:
        raise ApiError(403, "Forbidden", "no")

    with pytest.raises(ApiError, match="no"):
        await electing("a", act, asyncio.Event())
    assert leases.holder is None


async def test_one_that_waits_can_be_stopped(leases: Leases) -> None:
    """It leaves the other's Lease alone."""
    await LeaseLock(leases, SETTINGS, "other", Leadership(2.0)).create("kvasir-operator", "kvasir-system", None)  # type: ignore[arg-type]
    stop = asyncio.Event()
    stop.set()

    async def act() -> None:
        raise AssertionError

    await asyncio.wait_for(electing("a", act, stop), 30)
    assert leases.holder == "other"


async def test_an_api_server_that_is_down_at_first(leases: Leases) -> None:
    """The election goes on until it answers."""
    leases.down = True
    acted = asyncio.Event()

    async def act() -> None:
        acted.set()

    waiting = asyncio.create_task(electing("a", act, asyncio.Event()))
    await asyncio.sleep(0.02)
    assert not acted.is_set()
    leases.down = False
    await asyncio.wait_for(waiting, 30)
    assert acted.is_set()


def test_leadership_runs_out() -> None:
    """Counted from when the renewal was sent, on a clock that goes on while the process is stopped."""
    now = [0.0]
    leadership = Leadership(10.0, lambda: now[0])
    with pytest.raises(LeadershipLostError):
        leadership.check()
    leadership.renewed(sent_at=0.0)
    now[0] = 9.9
    leadership.check()
    now[0] = 10.0
    with pytest.raises(LeadershipLostError):
        leadership.check()
    leadership.renewed(sent_at=10.0)
    leadership.check()
    leadership.give_up()
    with pytest.raises(LeadershipLostError):
        leadership.check()


def test_the_clock_counts_what_the_process_slept_through() -> None:
    """It never goes back."""
    first = leader.boot_clock()
    assert leader.boot_clock() >= first


def test_an_operator_that_runs_alone_may_always_write() -> None:
    """By its settings."""
    Unelected().check()
