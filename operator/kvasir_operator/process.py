"""The operator's process: what runs beside what, and in which order it starts and ends."""

import asyncio
import logging
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration

from kvasir_operator import health, sync, webhooks
from kvasir_operator.cluster import BUDGETS, Cluster
from kvasir_operator.connection import default_home, load_configuration
from kvasir_operator.events import EventRecorder
from kvasir_operator.execute import Executor
from kvasir_operator.leader import Leadership, Unelected, lead
from kvasir_operator.observe import Observer
from kvasir_operator.reconciler import Reconciler
from kvasir_operator.scrape import Scraper
from kvasir_operator.settings import Settings
from kvasir_operator.status_writer import StatusWriter
from kvasir_operator.store import Store
from kvasir_operator.tasks import first_of
from kvasir_operator.tokens import Tokens

log = logging.getLogger(__name__)

Watch = Callable[[Reconciler, Configuration, list[str], asyncio.Event], Awaitable[None]]
"""How events reach the reconciler: by kopf, which only the entry point knows. Sets the event once it watches."""

BEAT_SECONDS: Final = 5.0
"""Time between two signs of life of the event loop."""
POD_CONNECTIONS: Final = 256
"""Requests to operator ports at the same time."""
KEPT_SECONDS: Final = 70.0
"""How long a connection to a pod is kept unused: longer than RESYNC_SECONDS, since making one costs more than asking,
and shorter than the runtime keeps it, so that none is written into that is being closed."""


def utc_now() -> datetime:
    return datetime.now(UTC)


def default_identity() -> str:
    """A name that no other process has."""
    return f"{socket.gethostname()}-{os.getpid()}"


async def run(settings: Settings, watch: Watch) -> None:
    """Run until a signal comes; raises LeadershipLostError, ApiError or OSError when that cannot go on."""
    stop = asyncio.Event()
    catch_signals(stop)
    state = health.Health()
    configuration = await load_configuration(os.environ, default_home())
    identity = settings.identity or default_identity()
    leadership = Leadership(settings.lease_renew_deadline_seconds) if settings.leader_election else Unelected()
    async with health.serve(settings, state), beating(state), ApiClient(configuration) as client:
        process = Process(settings, watch, configuration, client, leadership, identity, state, stop)
        # Every replica answers reviews and keeps the certificates, so these writes ask for no leadership.
        unfenced = Cluster(client, lambda: None, settings.api_timeout_seconds)
        async with webhooks.serve(settings, unfenced, utc_now):
            state.ready, state.role = True, "waits for the Lease"
            if settings.leader_election:
                await lead(client, settings, identity, leadership, stop, process.act)
            else:
                await process.act()
    log.info("stopped")


@dataclass(frozen=True)
class Process:
    """What the leader runs on."""

    settings: Settings
    watch: Watch
    configuration: Configuration
    client: ApiClient
    leadership: Leadership
    identity: str
    state: health.Health
    stop: asyncio.Event

    async def act(self) -> None:
        """Look after the services until `stop` is set; raises what else ends it."""
        cluster = Cluster(self.client, self.leadership.check, self.settings.api_timeout_seconds)
        store = Store()
        self.state.role = "waits for the CRD"
        await first_of(sync.wait_for_crd(cluster, self.settings.namespaces), self.stop.wait())
        if self.stop.is_set():
            return
        self.state.role = "fills its cache"
        await cluster.discover(BUDGETS)
        await sync.fill(store, cluster, self.settings.namespaces)
        allow_open_files()
        connector = aiohttp.TCPConnector(limit=POD_CONNECTIONS, keepalive_timeout=KEPT_SECONDS)
        async with aiohttp.ClientSession(connector=connector) as session:
            scraper = Scraper(session, self.settings.scrape_timeout_seconds)
            tokens = Tokens(cluster, utc_now)
            observer = Observer(store, tokens, scraper, cluster, self.settings, utc_now)
            await observer.devices.fill(cluster)
            executor = Executor(cluster, scraper, store, tokens, self.settings, utc_now, observer.warmth)
            reconciler = self._reconciler(cluster, store, observer, executor)
            watching = asyncio.Event()
            try:
                await first_of(
                    self.watch(reconciler, self.configuration, self.settings.namespaces, watching),
                    self._begin(reconciler, watching),
                    sync.keep_comparing(store, cluster, self.settings.namespaces, reconciler.wake),
                    observer.devices.keep_comparing(cluster),
                    wait_for(reconciler.failed),
                    self.stop.wait(),
                )
            finally:
                self.state.role = "stops"
                await reconciler.stop()

    async def _begin(self, reconciler: Reconciler, watching: asyncio.Event) -> None:
        """Act from the moment at which events come in; then do nothing, for ever."""
        await watching.wait()
        catch_signals(self.stop)  # kopf has put its own in place of ours
        self.state.role = "leads"
        reconciler.start()
        await asyncio.Event().wait()

    def _reconciler(self, cluster: Cluster, store: Store, observer: Observer, executor: Executor) -> Reconciler:
        return Reconciler(
            store,
            observer,
            executor,
            EventRecorder(cluster, utc_now, self.identity),
            lambda key: StatusWriter(cluster, store, key, utc_now),
            self.settings,
            utc_now,
        )


def catch_signals(stop: asyncio.Event) -> None:
    """Have SIGTERM and SIGINT set `stop`."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)


def allow_open_files() -> None:
    """Take as many open files as this process may have: there is a connection for each pod."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@asynccontextmanager
async def beating(state: health.Health) -> AsyncIterator[None]:
    """Show that the event loop runs."""

    async def beat() -> None:
        while True:
            state.beat()
            await asyncio.sleep(BEAT_SECONDS)

    task = asyncio.create_task(beat(), name="heartbeat")
    try:
        yield
    finally:
        task.cancel()


async def wait_for(future: "asyncio.Future[None]") -> None:
    await asyncio.shield(future)
