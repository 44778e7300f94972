"""The process's life: both ports, signals, and how it ends.

| event            | ready | new requests            | running ones             | process           |
|------------------|-------|-------------------------|--------------------------|-------------------|
| first SIGTERM    | no    | taken for `drain_delay` | finish                   | ends when all did |
| `drain_timeout`  | no    | refused                 | cut                      | ends              |
| second SIGTERM   | no    | refused                 | cut                      | ends              |
"""

import asyncio
import gc
import logging
from collections.abc import Coroutine
from socket import socket
from typing import Any, Final

import uvloop

from kvasir_router.checker import check_forever
from kvasir_router.configuration import Configuration
from kvasir_router.discovery import discover_forever
from kvasir_router.operator_port import OperatorApp, parse_config
from kvasir_router.proxy import UserApp
from kvasir_router.router import Router
from kvasir_router.settings import RouterSettings
from kvasir_runtime.edge.auth import BearerTokens
from kvasir_runtime.edge.gates import OperatorGate, UserGate
from kvasir_runtime.edge.http_server import FLUSH_S, HttpServer, handled_signals, make_server
from kvasir_runtime.edge.process import raise_open_files_limit

LOOK_S: Final = 1.0
"""How often the file of endpoints and the age of connections are looked at."""

IDLE_LOOK_S: Final = 0.05

logger = logging.getLogger("kvasir.router")


def serve_forever(settings: RouterSettings, ports: tuple[socket, socket]) -> int:
    """Serve until told to stop; returns the exit status. Raises KvasirError for files that cannot be used."""
    raise_open_files_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(settings, ports))


async def _serve(settings: RouterSettings, ports: tuple[socket, socket]) -> int:
    router = Router(settings)
    configuration = Configuration(router.apply, parse_config, settings.endpoints_file, settings.state_file)
    configuration.start()
    admin_tokens = BearerTokens(file=settings.admin_token_file, flag="--admin-token-file")
    gate = UserGate(BearerTokens(settings.api_key, settings.api_key_file), settings.max_streams_per_key, admin_tokens)
    user = make_server(UserApp(router, gate))
    operator = make_server(OperatorApp(router, configuration, OperatorGate(admin_tokens)))
    stopping = Stopping(router)
    with handled_signals(stopping.on_signal):
        serving = [
            asyncio.ensure_future(server.serve(sockets=[port]))
            for server, port in zip((user, operator), ports, strict=True)
        ]
        working = [asyncio.ensure_future(work) for work in _work(router, configuration)]
        gc.collect()
        gc.freeze()  # what start-up made lives as long as the process: never look at it again
        logger.info(
            "ready", extra={"port": settings.port, "admin_port": settings.admin_port, "boot_id": router.boot_id}
        )
        await stopping.told.wait()
        await _drain(router, user, stopping)
        user.should_exit = operator.should_exit = True
        await asyncio.wait(serving, timeout=FLUSH_S + 1)
        for task in (*serving, *working):
            task.cancel()
        await asyncio.gather(*serving, *working, return_exceptions=True)
    router.pool.close()
    logger.info("stopped")
    return 0


class Stopping:
    """What signals have said: the first to end, the second to end at once."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self.told = asyncio.Event()
        self.at_once = asyncio.Event()

    def on_signal(self, name: str) -> None:
        logger.info("stopping", extra={"signal": name, "inflight": self._router.inflight})
        (self.at_once if self.told.is_set() else self.told).set()
        self._router.draining = True


async def _drain(router: Router, user: HttpServer, stopping: Stopping) -> None:
    """Take requests until nobody sends them here any more, then let those that run finish."""
    settings = router.settings
    await _wait(stopping.at_once, settings.drain_delay)
    for server in user.servers:
        server.close()
    clock = router.clock
    deadline = clock() + settings.drain_timeout
    while router.inflight and not stopping.at_once.is_set() and clock() < deadline:
        await _wait(stopping.at_once, IDLE_LOOK_S)
    if router.inflight:
        logger.warning("cutting what runs", extra={"inflight": router.inflight})


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return


def _work(router: Router, configuration: Configuration) -> list[Coroutine[Any, Any, None]]:
    interval = router.settings.health_interval
    target = router.settings.endpoints_dns
    return [
        _look_forever(router, configuration),
        *([check_forever(router, interval)] if interval else []),
        *([discover_forever(router, target)] if target else []),
    ]


async def _look_forever(router: Router, configuration: Configuration) -> None:
    while True:
        await asyncio.sleep(LOOK_S)
        configuration.look()
        router.pool.sweep()
