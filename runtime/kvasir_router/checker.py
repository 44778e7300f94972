"""Active health checks: each replica's `/health`, every few seconds."""

import asyncio
import logging
from typing import Final

from kvasir_router.fleet import Endpoint
from kvasir_router.router import Router
from kvasir_router.upstream import UpstreamError
from kvasir_runtime.contract.router_api import CircuitState

TIMEOUT_S: Final = 5.0
"""A replica that computes answers in milliseconds; one whose node is short of CPU may take seconds."""

_REQUEST: Final = b"GET /health HTTP/1.1\r\nhost: replica\r\n\r\n"

logger = logging.getLogger("kvasir.router")


async def check_forever(router: Router, interval_s: float) -> None:
    """Check all replicas, at the same time, every `interval_s`."""
    while True:
        await asyncio.sleep(interval_s)
        await asyncio.gather(*(check(router, endpoint) for endpoint in router.fleet.endpoints.values()))
        router.room.look()


async def check(router: Router, endpoint: Endpoint) -> None:
    """Ask one replica. One that answers again has its circuit closed, if that was about to be tried."""
    health = endpoint.health
    before = health.answers
    found = await _answers(router, endpoint.spec.address)
    health.checked(found=found)
    if found and health.circuit(router.clock()) is CircuitState.HALF_OPEN and not health.trying:
        health.succeeded()
    if health.answers != before:
        logger.info(
            "replica answers again" if found else "replica misses health checks", extra={"replica": endpoint.spec.name}
        )


async def _answers(router: Router, address: str) -> bool:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            connection = await router.pool.take(address)
            try:
                connection.send(_REQUEST, b"")
                await connection.head()
                while await connection.read():
                    continue
            finally:
                router.pool.give_back(connection)
    except (UpstreamError, TimeoutError):
        return False
    return connection.status == 200
