"""The control loop: one task for each service, woken by events of its objects and by time.

A turn of a task: observe → plan → execute → status. It starts from whatever is there, so it does not matter which
events were lost or repeated, or what the operator was doing when it was stopped.
"""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from kvasir_operator import metrics
from kvasir_operator.api.v1alpha1 import ObjectMeta
from kvasir_operator.backoff import SHOWN_AFTER, Backoff
from kvasir_operator.cluster import NODES, Kind
from kvasir_operator.errors import LeadershipLostError
from kvasir_operator.events import EventRecorder
from kvasir_operator.execute import Executor, Outcome, reference
from kvasir_operator.observe import Observer
from kvasir_operator.pacing import Pace, is_at_rest, next_interval
from kvasir_operator.planning.actions import Drain, Note, TellAdapters, Undrain
from kvasir_operator.planning.autoscaling import Outcome as Scaled
from kvasir_operator.planning.autoscaling import autoscale
from kvasir_operator.planning.notes import notes_on_actions, notes_on_status
from kvasir_operator.planning.plan import make_plan
from kvasir_operator.planning.replicas import wanted_replicas
from kvasir_operator.planning.state import Refusal, Snapshot
from kvasir_operator.planning.status import make_status
from kvasir_operator.scaling.record import LOG_KEY
from kvasir_operator.scaling.windows import Memory
from kvasir_operator.settings import Settings
from kvasir_operator.slots import Slots
from kvasir_operator.status_writer import StatusWriter
from kvasir_operator.store import ServiceKey, Store

log = logging.getLogger(__name__)

PRECEDENCE_SECONDS: Final = 120.0
"""How far a service that has been moving for long may go before one that began now."""
EAGER_TURNS: Final = 5
"""Turns in a row that may follow each other at once because something was done; then they wait like failures."""


@dataclass(slots=True)
class _Service:
    """What is remembered of one service between turns; losing it costs time, never correctness."""

    backoff: Backoff
    writer: StatusWriter
    memory: Memory = field(default_factory=Memory)
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    interval: float = 0.0
    rested: tuple[object, ...] = ()
    eager: int = 0
    errors: int = 0
    stages: Counter[str] = field(default_factory=Counter)
    moving_since: float | None = None


class Reconciler:
    """Runs the tasks. `notice` is told of everything that is watched."""

    def __init__(
        self,
        store: Store,
        observer: Observer,
        executor: Executor,
        recorder: EventRecorder,
        make_writer: Callable[[ServiceKey], StatusWriter],
        settings: Settings,
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._observer = observer
        self._executor = executor
        self._recorder = recorder
        self._make_writer = make_writer
        self._settings = settings
        self._clock = clock
        self._pace = Pace(settings.scrape_seconds, max(settings.scrape_seconds, settings.resync_seconds))
        self._slots = Slots(settings.max_concurrent_reconciles)
        self._services: dict[ServiceKey, _Service] = {}
        self._tasks: dict[ServiceKey, asyncio.Task[None]] = {}
        self._started = False
        observer.devices.on_change = self.wake
        executor.warmer.on_end = self.wake
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Set to an exception when this process must stop acting."""

    def notice(self, kind: Kind, change: str | None, manifest: Mapping[str, Any]) -> None:
        """Take in a watch event, and wake its service if that is news. Nodes wake those who are to leave them alone."""
        if kind == NODES:
            self._observer.devices.notice(change, manifest)
            for left in self._observer.notice_cordon(change, manifest):
                self.wake(left)
            return
        if change == "DELETED":
            version = manifest["metadata"].get("resourceVersion", "")
            key = self._store.remove(kind, manifest["metadata"]["uid"], int(version) if version.isdecimal() else 0)
        else:
            key = self._store.put(kind, manifest)
        if key is not None:
            self.wake(key)

    def start(self) -> None:
        """Begin to act: from now on every service that is known or becomes known has its task."""
        self._started = True
        for key in list(self._store.services()):
            self.wake(key)

    def wake(self, key: ServiceKey) -> None:
        """Have the service looked at soon. Waking it often is waking it once."""
        if not self._started:
            return
        if key not in self._tasks:
            if self._store.service(key) is None:
                return
            self._services[key] = self._make_service(key)
            self._tasks[key] = asyncio.create_task(self._follow(key), name=f"service {key}")
            metrics.SERVICES.set(len(self._tasks))
        self._services[key].woken.set()

    async def stop(self) -> None:
        """End all tasks; writes that were sent are awaited no longer, the next operator goes on from what they did."""
        self._started = False
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._executor.warmer.stop()

    def _make_service(self, key: ServiceKey) -> _Service:
        settings = self._settings
        backoff = Backoff(settings.backoff_initial_seconds, settings.backoff_max_seconds, random.random)
        return _Service(backoff, self._make_writer(key))

    async def _follow(self, key: ServiceKey) -> None:
        service = self._services[key]
        try:
            while True:
                service.woken.clear()
                wait = await self._guarded_turn(key, service)
                if wait is None:
                    return
                await _wait(service.woken, wait)
        except LeadershipLostError as error:
            if not self.failed.done():
                self.failed.set_exception(error)
        finally:
            del self._tasks[key], self._services[key]
            self._observer.forget(key)
            self._count(service, Counter())
            metrics.SERVICES.set(len(self._tasks))

    async def _guarded_turn(self, key: ServiceKey, service: _Service) -> float | None:
        """One turn when a slot is free; an error is shown and the turn tried again later. None: the service is gone."""
        with metrics.WAITING.track_inprogress():
            await self._slots.acquire(_rank(service, time.monotonic()))
        started = time.perf_counter()
        try:
            wait = await self._turn(key, service)
        except LeadershipLostError:
            raise
        except Exception as error:
            service.errors += 1
            metrics.RECONCILES.labels("error").inc()
            metrics.ERRORS.labels("reconcile", type(error).__name__).inc()
            log.exception("service %s could not be looked after, attempt %d", key, service.errors)
            await self._show(key, service, error)
            return service.backoff.wait(service.errors)
        finally:
            self._slots.release()
            metrics.RECONCILE_SECONDS.observe(time.perf_counter() - started)
        service.errors = 0
        if service.rested:
            service.moving_since = None
        metrics.RECONCILES.labels("done" if wait is not None else "gone").inc()
        return wait

    async def _show(self, key: ServiceKey, service: _Service, error: Exception) -> None:
        """Put an error that keeps coming back into the conditions, if that can be done at all."""
        if service.errors < SHOWN_AFTER:
            return
        refusal = Refusal("Reconcile", "", f"{type(error).__name__}: {error}", self._clock())
        try:
            snapshot = self._observer.recall(key, (refusal,))
            if snapshot is not None:
                await self._tell(service, snapshot, snapshot, [])
        except LeadershipLostError:
            raise
        except Exception:
            log.exception("nor could that be told in the status of %s", key)

    async def _turn(self, key: ServiceKey, service: _Service) -> float | None:
        """Observe, plan, execute, tell. Returns seconds until the next turn; None when the service is gone."""
        seen = await self._observer.refresh(key)
        if seen and seen == service.rested:
            return self._rest(service)
        snapshot = self._observer.recall(key, service.backoff.refusals)
        if snapshot is None:
            return None
        scaled = autoscale(snapshot, service.memory, self._clock())
        await self._announce(service, scaled)
        snapshot = scaled.snapshot
        plan = make_plan(snapshot, self._clock())
        wanted = (scaled.action, *plan.actions) if scaled.action is not None else plan.actions
        actions = service.backoff.admit(wanted, self._clock())
        outcomes = await self._executor.execute(snapshot, actions, self._observer.token(key))
        self._take_in(key, service, outcomes)
        after = self._observer.recall(key, service.backoff.refusals)
        if after is None:
            return None
        done = any(outcome.action is scaled.action and outcome.error is None for outcome in outcomes)
        after = scaled.settle(after, done=done)
        details_due = await self._tell(service, snapshot, after, outcomes)
        self._count(service, Counter(pod.stage for pod in after.pods))
        dues = (plan.due, service.backoff.due, details_due, scaled.due)
        service.rested = seen if plan.empty and scaled.action is None and not any(dues) and is_at_rest(after) else ()
        return self._next(service, after, outcomes, dues)

    async def _announce(self, service: _Service, scaled: Scaled) -> None:
        """Keep a decision of automatic scaling, with all that it was made of, before it is carried out."""
        decision, snapshot = scaled.decision, scaled.snapshot
        if decision is None or scaled.told:
            return
        await service.writer.write(snapshot.meta, snapshot.status, scaled.intent())
        text = f"from {decision.from_} to {decision.to} replicas: {decision.reason}"
        named = {"service": f"{snapshot.meta.namespace}/{snapshot.meta.name}"}
        log.info("Scaling %s", text, extra=reference(snapshot.meta) | {LOG_KEY: named | decision.to_manifest()})
        await self._recorder.record(snapshot.meta, Note("Scaling", text))

    def _rest(self, service: _Service) -> float:
        """Nothing changed since a turn that had nothing to do: look again later and later."""
        service.interval = min(self._pace.idle_s, max(self._pace.busy_s, service.interval * 2))
        return self._jittered(service.interval)

    def _take_in(self, key: ServiceKey, service: _Service, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            action = outcome.action
            if outcome.error is None:
                service.backoff.succeeded(action)
            else:
                service.backoff.failed(action, outcome.error, self._clock())
            if isinstance(action, Drain | Undrain | TellAdapters):
                self._observer.forget_answer(key, action.uid)

    async def _tell(
        self, service: _Service, before: Snapshot, after: Snapshot, outcomes: list[Outcome]
    ) -> datetime | None:
        """Write Events and the status; returns when to write details of the status that have to wait."""
        if after.meta.deletion_timestamp is not None:
            return None
        done = [outcome.action for outcome in outcomes if outcome.error is None]
        wanted = wanted_replicas(before.spec) if before.spec is not None else 0
        await self._record(after.meta, notes_on_actions(done, before.status, wanted))
        status = make_status(after, self._clock())
        due = await service.writer.write(after.meta, after.status, status)
        await self._record(after.meta, notes_on_status(after.status, status))
        return due

    async def _record(self, meta: ObjectMeta, notes: list[Note]) -> None:
        for note in notes:
            level = logging.WARNING if note.warning else logging.INFO
            log.log(level, "%s: %s", note.reason, note.message, extra=reference(meta))
            await self._recorder.record(meta, note)

    def _next(
        self, service: _Service, after: Snapshot, outcomes: list[Outcome], dues: tuple[datetime | None, ...]
    ) -> float:
        """Seconds to the next turn: at once when something was done, else when something is due or might have moved."""
        if any(outcome.error is None for outcome in outcomes):
            service.eager += 1
            over = service.eager - EAGER_TURNS
            return 0.0 if over <= 0 else service.backoff.wait(over)
        service.eager = 0
        now = self._clock()
        service.interval = next_interval(after, service.interval, self._pace, now)
        waits = [(due - now) / timedelta(seconds=1) for due in dues if due is not None]
        return max(0.0, min([self._jittered(service.interval), *waits]))

    @staticmethod
    def _jittered(seconds: float) -> float:
        return seconds * (0.9 + 0.2 * random.random())  # noqa: S311 - spreads load, guards nothing

    def _count(self, service: _Service, stages: Counter[str]) -> None:
        """Keep the gauge of pods by stage up to date."""
        for stage in service.stages.keys() | stages.keys():
            metrics.PODS.labels(stage).inc(stages[stage] - service.stages[stage])
        service.stages = stages


def _rank(service: _Service, now: float) -> float:
    """Since when the service has been moving: what began first ends first. What never rests has no precedence."""
    if service.moving_since is None:
        service.moving_since = now
    return max(service.moving_since, now - PRECEDENCE_SECONDS)


async def _wait(woken: asyncio.Event, seconds: float) -> None:
    """Until woken, or for so long."""
    try:
        async with asyncio.timeout(seconds):
            await woken.wait()
    except TimeoutError:
        return
