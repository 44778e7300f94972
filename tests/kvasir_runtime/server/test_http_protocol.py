"""Clients that send too much or too slowly."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import uvicorn

from kvasir_runtime.edge.http_protocol import MAX_HEAD_BYTES, BoundedHttpProtocol


class HastyProtocol(BoundedHttpProtocol):
    request_timeout_s = 0.2


async def echo_size(scope, receive, send) -> None:
    """Answers with the size of the body."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


@contextlib.asynccontextmanager
async def serving(protocol: type[BoundedHttpProtocol]) -> AsyncIterator[int]:
    """A server in this loop; gives its port."""
    config = uvicorn.Config(echo_size, port=0, http=protocol, lifespan="off", ws="none", log_config=None)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        await server.shutdown()


async def exchange(port: int, *parts: bytes) -> bytes:
    """Send the parts, wait until the server closes, return its answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in parts:
        writer.write(part)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
    try:
        return await asyncio.wait_for(reader.read(-1), 30)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_requests_pass():
    """Large bodies and many headers within the bound are served; two requests on one connection too."""
    body = b"x" * (4 * MAX_HEAD_BYTES)
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % len(body) + b"X-Some: header\r\n" * 100
    async with serving(BoundedHttpProtocol) as port:
        answer = await exchange(port, head, b"\r\n", body, head + b"Connection: close\r\n\r\n", body)
    assert answer.count(b"200 OK") == 2
    assert answer.count(str(len(body)).encode()) == 2


@pytest.mark.parametrize("line", [b"X-Long: " + b"x" * 100_000, b"X-Many: x\r\n" * 10_000])
async def test_endless_head(line):
    """431 in OpenAI's shape, and the connection closed."""
    async with serving(BoundedHttpProtocol) as port:
        pieces = [line[start : start + 1000] for start in range(0, len(line), 1000)]
        with contextlib.suppress(ConnectionResetError):
            answer = await exchange(port, b"GET / HTTP/1.1\r\n", *pieces)
            assert answer.startswith(b"HTTP/1.1 431 ")
            assert b'"code":"head_too_large"' in answer


@pytest.mark.parametrize("part", [b"", b"GET / HT", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n12"])
async def test_unfinished_request(part):
    """A client that does not finish its request is let go after the timeout."""
    async with serving(HastyProtocol) as port:
        assert await exchange(port, part) == b""
