"""Replicas that are scripted and a router that is real, on sockets of this machine."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sized
from dataclasses import dataclass, field
from typing import Any

import httpx
from uvicorn.server import ServerState

from kvasir_router.configuration import Configuration
from kvasir_router.operator_port import OperatorApp, parse_config
from kvasir_router.proxy import UserApp
from kvasir_router.router import Router
from kvasir_router.settings import RouterSettings
from kvasir_runtime.contract.router_api import RouterConfig, RouterEndpoint
from kvasir_runtime.edge.auth import BearerTokens
from kvasir_runtime.edge.gates import OperatorGate, UserGate
from kvasir_runtime.edge.http_protocol import BoundedHttpProtocol
from kvasir_runtime.edge.http_server import make_server

WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


@dataclass
class Seen:
    """A request as a replica got it."""

    line: str
    headers: dict[str, str]
    body: bytes


Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter, Seen], Awaitable[None]]


async def answer_whole(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: Seen) -> None:
    writer.write(WHOLE)


@dataclass
class FakeReplica:
    """A server that does to each request what `script` says; `gone` counts connections that ended."""

    name: str
    script: Script = answer_whole
    seen: list[Seen] = field(default_factory=list)
    port: int = 0
    connections: int = 0
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    server: asyncio.Server | None = None

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self.server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Nobody listens there any more."""
        if self.server is not None:
            self.server.close()

    def endpoint(self, **fields: Any) -> RouterEndpoint:
        return RouterEndpoint(name=self.name, address=f"127.0.0.1:{self.port}", **fields)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while seen := await self._read(reader):
                self.seen.append(seen)
                await self.script(reader, writer, seen)
                await writer.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.gone.set()
            writer.close()

    @staticmethod
    async def _read(reader: asyncio.StreamReader) -> Seen | None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
        except asyncio.IncompleteReadError:
            return None
        line, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in lines)}
        return Seen(line, headers, await reader.readexactly(int(headers.get("content-length", "0"))))


@dataclass
class Running:
    """A router on both ports."""

    router: Router
    url: str
    admin_url: str
    port: int
    client: httpx.AsyncClient

    def use(self, *endpoints: RouterEndpoint, **fields: Any) -> None:
        self.router.apply(RouterConfig(endpoints=list(endpoints), **fields))

    async def complete(self, prompt: str = "x", headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        body = {"prompt": prompt, **fields}
        return await self.client.post(f"{self.url}/v1/completions", json=body, headers=headers)


async def at_least(items: Sized, count: int) -> None:
    """Let the loop run until there are so many."""
    await eventually(lambda: len(items) >= count)


async def eventually(condition: Callable[[], bool]) -> None:
    """Let the loop run until `condition` holds; the test's own timeout is the bound."""
    while not condition():  # noqa: ASYNC110 - it happens in the router, which has no events for tests
        await asyncio.sleep(0.005)


def error_answer(status: int, code: str) -> bytes:
    body = json.dumps({"error": {"message": "no", "type": "server_error", "code": code}}).encode()
    return b"HTTP/1.1 %d No\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        status,
        len(body),
        body,
    )


@contextlib.asynccontextmanager
async def running(settings: RouterSettings, folder) -> AsyncIterator[Running]:
    router = Router(settings)
    token = folder / "token"
    token.write_text("operator-token")
    configuration = Configuration(router.apply, parse_config, settings.endpoints_file, settings.state_file)
    configuration.start()
    admin = BearerTokens(file=str(token))
    gate = UserGate(BearerTokens(settings.api_key, settings.api_key_file), settings.max_streams_per_key, admin)
    apps = [UserApp(router, gate), OperatorApp(router, configuration, OperatorGate(admin))]
    servers = [await serve(app) for app in apps]
    user, operator = (server.sockets[0].getsockname()[1] for server in servers)
    async with httpx.AsyncClient(timeout=60) as client:
        yield Running(router, f"http://127.0.0.1:{user}", f"http://127.0.0.1:{operator}", user, client)
    router.pool.close()
    for server in servers:
        server.close()


async def serve(app: Any) -> asyncio.Server:
    """As `make_server` does, without uvicorn's loop, which looks every 0.1 s whether it shall end."""
    config = make_server(app).config
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: BoundedHttpProtocol(config, state, {}), "127.0.0.1", 0)
