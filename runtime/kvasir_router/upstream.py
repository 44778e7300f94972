"""Connections to replicas: HTTP/1.1, kept open between requests, bodies passed on as they come.

httptools parses, as in uvicorn; there is no client in between, since a general one costs more than all the rest of the
router (see benchmarks/results).
"""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection
from enum import StrEnum
from typing import Final, cast

import httptools

Headers = list[tuple[bytes, bytes]]
"""Names in lower case."""

HIGH_WATER: Final = 256 * 1024
"""Bytes of a body that wait for the client before the replica is told to wait."""

IDLE_S: Final = 60.0
"""How long a connection is kept: less than the 75 s after which replicas close theirs."""

MAX_IDLE: Final = 512
"""Connections kept for each replica."""


class Trouble(StrEnum):
    """What went wrong with a replica."""

    CONNECT = "connect"
    BROKEN = "broken"
    SILENT = "silent"
    PROTOCOL = "protocol"


class UpstreamError(Exception):
    """A replica could not be reached, or broke off. `stale`: it had closed a kept connection, which says nothing."""

    def __init__(self, trouble: Trouble, message: str, *, stale: bool = False) -> None:
        super().__init__(message)
        self.trouble = trouble
        self.stale = stale


class Connection(asyncio.Protocol):
    """One exchange at a time: `send`, `head`, then `read` until it is b""."""

    def __init__(self, address: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.address = address
        self.status = 0
        self.headers: Headers = []
        self.complete = True
        self.lost = False
        self.since = clock()
        self._clock = clock
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._paused = False
        self._head_done = False
        self._interim = False
        self._head_only = False
        self._until_close = False
        self._keeps_alive = False
        self._uses = 0
        self._error: UpstreamError | None = None

    def send(self, head: bytes, body: bytes, *, head_only: bool = False) -> None:
        """Begin an exchange; `head_only` for HEAD, whose answer has no body."""
        assert self._transport is not None
        self.status, self.headers, self.complete = 0, [], False
        self._head_done = self._interim = self._until_close = False
        self._head_only = head_only
        self._uses += 1
        self.since = self._clock()
        self._transport.write(head)
        if body:
            self._transport.write(body)

    async def head(self) -> None:
        """Wait for status and headers; raises UpstreamError."""
        while not self._head_done:
            await self._wait()

    async def read(self) -> bytes:
        """What has come of the body since; b"" at its end. Raises UpstreamError when it ends too early."""
        while not self._chunks:
            if self.complete:
                return b""
            await self._wait()
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks, self._size = [], 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    @property
    def at_end(self) -> bool:
        """Whether all of the body has been read."""
        return self.complete and not self._chunks

    @property
    def reusable(self) -> bool:
        """Whether another exchange may follow."""
        return self.at_end and self._keeps_alive and not self.lost and not self._head_only

    def abort(self, error: UpstreamError | None = None) -> None:
        """Close at once: the replica notices, and stops computing."""
        self._error = self._error or error
        self.lost = True
        if self._transport is not None:
            self._transport.abort()
        self._wake()

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.since = self._clock()
        if self.complete:  # nobody asked for anything
            self.abort()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.abort(UpstreamError(Trouble.PROTOCOL, f"the replica's answer is no HTTP/1.1: {error}"))
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if not self.complete and self._until_close and exc is None:
            self.complete = True
        elif not self.complete and self._error is None:
            stale = self._uses > 1 and not self._head_done
            reason = f": {exc}" if exc else ""
            self._error = UpstreamError(Trouble.BROKEN, f"the replica closed the connection{reason}", stale=stale)
        self._wake()

    # What httptools calls

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status < 200:
            self.headers, self._interim = [], True
            return
        self._head_done = True
        self._keeps_alive = self._parser.should_keep_alive()
        framed = any(name in {b"content-length", b"transfer-encoding"} for name, _ in self.headers)
        self._until_close = not framed and self.status not in {204, 304}
        if self._head_only:
            self.complete = True

    def on_body(self, data: bytes) -> None:
        self._chunks.append(data)
        self._size += len(data)
        if self._size > HIGH_WATER and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
        else:
            self.complete = True

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        if self.lost:
            raise UpstreamError(Trouble.BROKEN, "the connection is closed")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Pool:
    """All connections. Idle ones are taken last in, first out, so that those not needed grow old and go."""

    def __init__(self, connect_timeout_s: float, silence_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`silence_s`: after so long without a byte an answer is given up."""
        self._connect_timeout_s = connect_timeout_s
        self._silence_s = silence_s
        self._clock = clock
        self._idle: defaultdict[str, deque[Connection]] = defaultdict(deque)
        self._busy: set[Connection] = set()

    async def take(self, address: str, *, fresh: bool = False) -> Connection:
        """A connection to `host:port`, a new one if `fresh`; raises UpstreamError. `give_back` must follow."""
        idle = self._idle[address]
        while idle and not fresh:
            connection = idle.pop()
            if not connection.lost:
                self._busy.add(connection)
                return connection
        connection = await self._connect(address)
        self._busy.add(connection)
        return connection

    def give_back(self, connection: Connection) -> None:
        """Keep it if it can be used again, else close it."""
        self._busy.discard(connection)
        idle = self._idle[connection.address]
        if connection.reusable and len(idle) < MAX_IDLE:
            connection.since = self._clock()
            idle.append(connection)
        else:
            connection.abort()

    def sweep(self) -> None:
        """Close what was idle, or silent, for too long."""
        now = self._clock()
        for idle in self._idle.values():
            while idle and (idle[0].lost or now - idle[0].since > IDLE_S):
                idle.popleft().abort()
        for connection in [each for each in self._busy if now - each.since > self._silence_s]:
            msg = f"the replica sent nothing for {self._silence_s:g} s"
            connection.abort(UpstreamError(Trouble.SILENT, msg))

    def retain(self, addresses: Collection[str]) -> None:
        """Close idle connections to all others."""
        for address in [each for each in self._idle if each not in addresses]:
            for connection in self._idle.pop(address):
                connection.abort()

    def close(self) -> None:
        """Close everything."""
        self.retain(())
        for connection in list(self._busy):
            connection.abort()

    async def _connect(self, address: str) -> Connection:
        host, _, port = address.rpartition(":")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(address, self._clock), host.strip("[]"), int(port)
                )
        except TimeoutError:
            msg = f"no connection to {address} within {self._connect_timeout_s:g} s"
            raise UpstreamError(Trouble.CONNECT, msg) from None
        except OSError as error:
            raise UpstreamError(Trouble.CONNECT, f"cannot connect to {address}: {error}") from None
        return connection
