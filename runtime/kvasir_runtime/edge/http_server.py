"""uvicorn as every port runs it: bounded, without its own signal handling and logs."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any, Final

import uvicorn

from kvasir_runtime.edge.http_protocol import BoundedHttpProtocol

FLUSH_S: Final = 5
"""How long clients may take to read the last bytes when the process ends."""

KEEP_ALIVE_S: Final = 75
"""Idle connections are kept longer than most proxies keep theirs (60 s), so that none writes into a closed one."""


class HttpServer(uvicorn.Server):
    """uvicorn without its own signal handling: the process decides."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make_server(app: Any) -> HttpServer:
    """A server for an ASGI application; `serve(sockets=[…])` runs it."""
    return HttpServer(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            http=BoundedHttpProtocol,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=FLUSH_S,
        )
    )


@contextlib.contextmanager
def handled_signals(on_signal: Callable[[str], None]) -> Iterator[None]:
    """Call `on_signal` with the name of each SIGTERM and SIGINT."""
    loop = asyncio.get_running_loop()
    handled = (signal.SIGTERM, signal.SIGINT)
    for number in handled:
        loop.add_signal_handler(number, on_signal, number.name)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
