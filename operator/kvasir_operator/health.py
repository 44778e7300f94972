"""The operator's own HTTP ports: probes for the kubelet, metrics for Prometheus."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from kvasir_operator import metrics
from kvasir_operator.settings import Settings

STALL_LIMIT: Final = 60.0
"""Seconds without a beat of the loop after which the process counts as dead."""


class Health:
    """What the probes are told. `ready` is set once; `beat` is called while all is well."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beaten_at = clock()
        self.ready = False
        self.role = "starting"

    def beat(self) -> None:
        self._beaten_at = self._clock()

    @property
    def alive(self) -> bool:
        return self._clock() - self._beaten_at < STALL_LIMIT


def make_app(health: Health) -> web.Application:
    """The answers: 200 or 503, with a word for people."""

    async def live(_: web.Request) -> web.Response:
        return _answer(health.alive, "alive", f"no progress for {STALL_LIMIT:g} s")

    async def ready(_: web.Request) -> web.Response:
        return _answer(health.ready and health.alive, health.role, health.role)

    async def exposition(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(metrics.REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes(
        [
            web.get("/livez", live),
            web.get("/healthz", live),
            web.get("/readyz", ready),
            web.get("/metrics", exposition),
        ]
    )
    return app


@asynccontextmanager
async def serve(settings: Settings, health: Health) -> AsyncIterator[None]:
    """Answer on the health port and the metrics port; raises OSError when one is taken."""
    runner = web.AppRunner(make_app(health), access_log=None)
    await runner.setup()
    try:
        for port in (settings.health_port, settings.metrics_port):
            await web.TCPSite(runner, port=port, reuse_address=True).start()
        yield
    finally:
        await runner.cleanup()


def _answer(good: bool, text: str, otherwise: str) -> web.Response:
    return web.Response(text=text if good else otherwise, status=200 if good else 503)
