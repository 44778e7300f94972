"""Who acts: the holder of a Lease. Two operators never act at once, also when one of them was stopped for a while.

`kubernetes.aio`'s election decides who holds the Lease. Around it:

- Every write asks `Leadership.check` first. It holds for `renew_deadline` from the moment at which the last successful
  renewal was *sent*, by a clock that goes on while the process or the machine sleeps; others take over only after
  `lease_duration` without a renewal, which is longer.
- A request that fails or hangs is a failed renewal, not the end of the process.
- A leader that is stopped lets go of the Lease, so that the next one need not wait for it to expire.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
from kubernetes.aio.client import ApiClient, ApiException, CoordinationV1Api
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

from kvasir_operator import metrics
from kvasir_operator.errors import LeadershipLostError
from kvasir_operator.settings import Settings
from kvasir_operator.tasks import cancel, first_of

log = logging.getLogger(__name__)

_NO_ANSWER = (aiohttp.ClientError, TimeoutError, OSError)


def boot_clock() -> float:
    """Seconds, counted on while the machine is suspended where the system can."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Leadership:
    """Whether this process may write, and until when."""

    def __init__(self, valid_for_s: float, clock: Callable[[], float] = boot_clock) -> None:
        self._valid_for = valid_for_s
        self._clock = clock
        self._until = float("-inf")
        self._released = False

    def now(self) -> float:
        return self._clock()

    def renewed(self, sent_at: float) -> None:
        """Take in a renewal that succeeded and was sent at that time."""
        self._until = max(self._until, sent_at + self._valid_for)
        metrics.LEADER.set(1)

    def give_up(self) -> None:
        """Never write again."""
        self._released = True
        metrics.LEADER.set(0)

    @property
    def held(self) -> bool:
        return not self._released and self._clock() < self._until

    def check(self) -> None:
        """Raise LeadershipLostError unless this process may write now."""
        if not self.held:
            metrics.LEADER.set(0)
            raise LeadershipLostError("the Lease was not renewed in time: another operator may act now")


class Unelected(Leadership):
    """The leadership of an operator that runs alone, by its settings."""

    def __init__(self) -> None:
        super().__init__(float("inf"))
        self.renewed(0.0)


class GuardedLock(LeaseLock):  # type: ignore[misc] # the client has no types
    """A Lease as the election's lock. Tells `leadership` of renewals; a request may take `timeout_s`."""

    def __init__(
        self, client: ApiClient, name: str, namespace: str, identity: str, leadership: Leadership, timeout_s: float
    ) -> None:
        super().__init__(name, namespace, identity, client)
        self._leadership = leadership
        self._timeout = timeout_s

    async def get(self, name: str, namespace: str) -> tuple[bool, Any]:
        try:
            async with asyncio.timeout(self._timeout):
                found: tuple[bool, Any] = await super().get(name, namespace)
        except _NO_ANSWER as error:
            return False, ApiException(status=0, reason=f"no answer: {str(error) or type(error).__name__}")
        return found

    async def create(self, name: str, namespace: str, election_record: LeaderElectionRecord) -> bool:
        return await self._timed(super().create(name, namespace, election_record))

    async def update(self, name: str, namespace: str, updated_record: LeaderElectionRecord) -> bool:
        return await self._timed(super().update(name, namespace, updated_record))

    async def release(self) -> None:
        """Leave the Lease without a holder, if we are it still; others need not wait then."""
        api = CoordinationV1Api(self.api_instance.api_client)
        try:
            async with asyncio.timeout(self._timeout):
                lease = await api.read_namespaced_lease(self.name, self.namespace)
                if lease.spec.holder_identity == self.identity:
                    version = {"resourceVersion": lease.metadata.resource_version}
                    body = {"metadata": version, "spec": {"holderIdentity": None}}
                    await api.patch_namespaced_lease(
                        self.name, self.namespace, body, _content_type="application/merge-patch+json"
                    )
        except (*_NO_ANSWER, ApiException) as error:
            log.warning("the Lease was not released, it expires by itself: %s", error)

    async def _timed(self, request: Awaitable[bool]) -> bool:
        sent_at = self._leadership.now()
        try:
            async with asyncio.timeout(self._timeout):
                succeeded = await request
        except _NO_ANSWER as error:
            log.warning("the Lease could not be written: %s", str(error) or type(error).__name__)
            return False
        if succeeded:
            self._leadership.renewed(sent_at)
        return succeeded


async def lead(
    client: ApiClient,
    settings: Settings,
    identity: str,
    leadership: Leadership,
    stop: asyncio.Event,
    act: Callable[[], Awaitable[None]],
) -> None:
    """Wait for the Lease, then run `act` while it is held; returns when `act` does, and releases the Lease.

    Once `stop` is set it waits no longer; ending `act` is for the caller to see to. Raises LeadershipLostError when the
    Lease is lost, once `act` has been cancelled, and whatever `act` raises.
    """
    timeout_s = settings.lease_renew_deadline_seconds / 2
    lock = GuardedLock(client, settings.lease_name, settings.namespace, identity, leadership, timeout_s)
    elected = asyncio.Event()
    log.info("waiting for Lease %s/%s as %s", settings.namespace, settings.lease_name, identity)
    renewing = asyncio.create_task(_election(lock, settings, elected).run(), name="leader election")
    try:
        await first_of(elected.wait(), stop.wait())
        if not stop.is_set():
            log.info("this operator leads")
            await _while_leading(renewing, act)
    finally:
        await cancel(renewing)
        was_held = leadership.held
        leadership.give_up()
        if was_held:
            await lock.release()


def _election(lock: GuardedLock, settings: Settings, elected: asyncio.Event) -> LeaderElection:
    async def started() -> None:
        elected.set()

    async def stopped() -> None:
        log.error("the Lease could not be renewed for %g s", settings.lease_renew_deadline_seconds)

    config = Config(
        lock,
        lease_duration=settings.lease_duration_seconds,
        renew_deadline=settings.lease_renew_deadline_seconds,
        retry_period=settings.lease_retry_seconds,
        onstarted_leading=started,
        onstopped_leading=stopped,
    )
    return LeaderElection(config)


async def _while_leading(renewing: asyncio.Task[None], act: Callable[[], Awaitable[None]]) -> None:
    acting = asyncio.ensure_future(act())
    try:
        await asyncio.wait({renewing, acting}, return_when=asyncio.FIRST_COMPLETED)
        if not acting.done():
            raise LeadershipLostError("the Lease was lost")
        acting.result()
    finally:
        await cancel(acting)
