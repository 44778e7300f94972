"""Replicas by name: every address that a name server gives for one, as a headless Service has it for ready pods.

For routers that nobody pushes to. Names change late and tell no loads: what is pushed takes their place.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Final

from kvasir_router.router import Router
from kvasir_runtime.contract.router_api import RouterConfig, RouterEndpoint

LOOK_S: Final = 2.0
"""Time between two looks; cluster name servers keep their answers for 5 to 30 s."""

VERSION: Final = "dns"
"""Of the configurations that are made here."""

logger = logging.getLogger("kvasir.router")

Resolve = Callable[[str, int], Awaitable[list[str] | None]]
"""The addresses behind a name; none when there is no such name, None when that could not be found out."""


async def resolve(host: str, port: int) -> list[str] | None:
    """Ask the system's resolver."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        return [] if error.errno in {socket.EAI_NONAME, socket.EAI_NODATA} else None
    return sorted({_address(str(sockaddr[0]), port) for *_, sockaddr in found})


async def discover(router: Router, target: str, ask: Resolve = resolve) -> None:
    """Look once and route by what was found, unless somebody has pushed a configuration."""
    host, _, port = target.rpartition(":")
    addresses = await ask(host.strip("[]"), int(port))
    known = router.config
    if addresses is None or (known is not None and known.version != VERSION):
        return
    if known is None or sorted(each.address for each in known.endpoints) != addresses:
        router.apply(configuration(router, addresses))
        logger.info("replicas found by name", extra={"host": target, "replicas": len(addresses)})


def configuration(router: Router, addresses: list[str]) -> RouterConfig:
    """What is routed by while replicas are known by their addresses alone."""
    settings = router.settings
    return RouterConfig(
        version=VERSION,
        endpoints=[RouterEndpoint(name=address, address=address) for address in addresses],
        policy=settings.policy,
        max_held_requests=settings.max_held_requests,
        hold_timeout_s=settings.hold_timeout,
    )


async def discover_forever(router: Router, target: str) -> None:
    """Look every `LOOK_S`."""
    while True:
        await discover(router, target)
        await asyncio.sleep(LOOK_S)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
