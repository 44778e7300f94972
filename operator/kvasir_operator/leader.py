"""Who acts: the holder of a Lease. Two operators never act at once, also when one of them was stopped for a while.

`kubernetes.aio`'s election decides who holds the Lease. Around it:

- Every write asks `Leadership.check` first. It holds for `renew_deadline` from the moment at which the last successful
  renewal was *sent*, by a clock that goes on while the process or the machine sleeps; others take over only after
  `lease_duration` without a renewal, which is longer.
- A request that fails or hangs is a failed renewal, not the end of the process.
- A leader that is stopped lets go of the Lease, so that the next one need not wait for it to expire.
"""

import asyncio
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from kubernetes.aio.client import ApiClient, ApiException
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord
from kubernetes.aio.leaderelection.resourcelock.baselock import BaseLock

from kvasir_operator import metrics
from kvasir_operator.cluster import LEASES, MERGE_PATCH, Cluster
from kvasir_operator.errors import ApiError, LeadershipLostError
from kvasir_operator.settings import Settings
from kvasir_operator.tasks import cancel, first_of

log = logging.getLogger(__name__)


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


class LeaseLock(BaseLock):  # type: ignore[misc] # the client has no types
    """A Lease as the election's lock. Tells `leadership` of renewals.

    In place of the client's own: that one writes local time as UTC, and lets a missing answer end the election. The
    election's record is not needed to write: it holds nothing but our name, the duration and the time.
    """

    def __init__(self, cluster: Cluster, settings: Settings, identity: str, leadership: Leadership) -> None:
        super().__init__(settings.lease_name, settings.namespace, identity)
        self._cluster = cluster
        self._duration = math.ceil(settings.lease_duration_seconds)
        self._leadership = leadership
        self._lease: dict[str, Any] = {}

    async def get(self, name: str, namespace: str) -> tuple[bool, LeaderElectionRecord | ApiException]:
        """The Lease as a record, or the error in the form in which the election looks for "not found"."""
        try:
            self._lease = await self._cluster.get(LEASES, namespace, name)
        except ApiError as error:
            failure = ApiException(status=error.status, reason=str(error))
            failure.body = json.dumps({"code": error.status})
            return False, failure
        spec = self._lease.get("spec") or {}
        duration = spec.get("leaseDurationSeconds")
        return True, LeaderElectionRecord(
            spec.get("holderIdentity") or None,
            str(duration) if duration is not None else None,
            spec.get("acquireTime"),
            spec.get("renewTime"),
        )

    async def create(self, name: str, namespace: str, election_record: LeaderElectionRecord) -> bool:  # noqa: ARG002
        manifest = {
            "apiVersion": LEASES.api_version,
            "kind": "Lease",
            "metadata": {"name": name, "namespace": namespace},
            "spec": self._spec({}),
        }
        return await self._hold(self._cluster.create(LEASES, namespace, manifest))

    async def update(self, name: str, namespace: str, updated_record: LeaderElectionRecord) -> bool:  # noqa: ARG002
        """Write the Lease that was read last; a conflict if somebody else did so since."""
        version = self._lease["metadata"]["resourceVersion"]
        body = {"metadata": {"resourceVersion": version}, "spec": self._spec(self._lease.get("spec") or {})}
        return await self._hold(self._cluster.patch(LEASES, namespace, name, body, MERGE_PATCH))

    async def release(self) -> None:
        """Leave the Lease without a holder, if we are it still; others need not wait then."""
        try:
            lease = await self._cluster.get(LEASES, self.namespace, self.name)
            if lease["spec"].get("holderIdentity") == self.identity:
                version = {"resourceVersion": lease["metadata"]["resourceVersion"]}
                body = {"metadata": version, "spec": {"holderIdentity": None}}
                await self._cluster.patch(LEASES, self.namespace, self.name, body, MERGE_PATCH)
        except ApiError as error:
            log.warning("the Lease was not released, it expires by itself: %s", error)

    def _spec(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """The Lease held by us from now on; the time of acquisition stays while we hold it."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {"holderIdentity": self.identity, "leaseDurationSeconds": self._duration, "renewTime": now}
        if before.get("holderIdentity") != self.identity:
            spec |= {"acquireTime": now, "leaseTransitions": before.get("leaseTransitions", -1) + 1}
        return spec

    async def _hold(self, request: Awaitable[object]) -> bool:
        sent_at = self._leadership.now()
        try:
            await request
        except ApiError as error:
            log.warning("the Lease could not be written: %s", error)
            return False
        self._leadership.renewed(sent_at)
        return True


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
    cluster = Cluster(client, lambda: None, timeout_s=settings.lease_renew_deadline_seconds / 2)
    lock = LeaseLock(cluster, settings, identity, leadership)
    elected = asyncio.Event()
    log.info("waiting for Lease %s/%s as %s", settings.namespace, settings.lease_name, identity)
    renewing = asyncio.create_task(_election(lock, settings, elected).run(), name="leader election")
    try:
        await first_of(elected.wait(), stop.wait(), asyncio.shield(renewing))
        if not stop.is_set():
            log.info("this operator leads")
            await _while_leading(renewing, act)
    finally:
        await cancel(renewing)
        was_held = leadership.held
        leadership.give_up()
        if was_held:
            await lock.release()


def _election(lock: LeaseLock, settings: Settings, elected: asyncio.Event) -> LeaderElection:
    async def started() -> None:
        elected.set()

    async def stopped() -> None:
        log.error("the Lease could not be renewed for %g s", settings.lease_renew_deadline_seconds)

    config = Config(
        lock,
        lease_duration=math.ceil(settings.lease_duration_seconds),  # whole seconds in a Lease
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
