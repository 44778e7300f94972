"""The user port: who may come in, how much at a time, and a line in the log for each request."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from http import HTTPStatus
from typing import Final

from starlette.types import Receive, Scope, Send

from kvasir_router.exchange import header
from kvasir_router.router import Router
from kvasir_router.visit import Visit
from kvasir_runtime.edge.errors import ApiError, unavailable
from kvasir_runtime.edge.gates import UserGate
from kvasir_runtime.edge.incoming import QUIET_PATHS, body_too_large, usable_id
from kvasir_runtime.logs import request_id as current_request_id

CLIENT_CLOSED_REQUEST: Final = 499
"""What the log shows for a client that did not wait for its answer; nobody receives it."""

access = logging.getLogger("kvasir.access")
logger = logging.getLogger("kvasir.router")

Own = Callable[[Send], Awaitable[int]]
"""Answers a path of the router's own; returns the status."""


class UserApp:
    """The ASGI application of the user port. What is not the router's own goes to a replica."""

    def __init__(self, router: Router, gate: UserGate) -> None:
        self._router = router
        self._gate = gate
        self._own: dict[str, Own] = {"/health": self._health, "/ready": self._health, "/metrics": self._metrics}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        identifier = usable_id(header(scope["headers"], b"x-request-id"))
        token = current_request_id.set(identifier)
        began = self._router.clock()
        visit = Visit(self._router, scope, send, identifier)
        try:
            status = await self._answer(visit, scope, receive, send)
        except ApiError as refusal:
            status = await self._refuse(refusal, scope, receive, send, identifier)
        except Exception:
            logger.exception("unexpected error")
            error = ApiError(
                HTTPStatus.INTERNAL_SERVER_ERROR, "internal error; see the router's log", code="internal_error"
            )
            status = await self._refuse(error, scope, receive, send, identifier) if not visit.status else visit.status
        finally:
            current_request_id.reset(token)
        self._log(visit, scope, identifier, status, self._router.clock() - began)

    async def _answer(self, visit: Visit, scope: Scope, receive: Receive, send: Send) -> int:
        own = self._own.get(scope["path"])
        if own is not None:
            return await own(send)
        leave = self._gate.enter(scope["path"], {"authorization": header(scope["headers"], b"authorization") or ""})
        try:
            with self._admitted():
                return await self._pass(visit, scope, receive)
        finally:
            leave()

    @contextlib.contextmanager
    def _admitted(self) -> Iterator[None]:
        router = self._router
        if router.inflight >= router.settings.max_inflight_requests:
            msg = f"{router.inflight} requests are under way, which is this router's limit"
            raise ApiError(HTTPStatus.TOO_MANY_REQUESTS, msg, code="router_full", retry_after_s=1)
        router.came()
        try:
            yield
        finally:
            router.went()

    async def _pass(self, visit: Visit, scope: Scope, receive: Receive) -> int:
        body = await self._read_body(scope, receive)
        if body is None:
            return CLIENT_CLOSED_REQUEST
        self._router.budget.request()
        self._router.buffered += len(body)
        try:
            return await self._watched(visit, body, receive)
        finally:
            self._router.buffered -= len(body)

    async def _watched(self, visit: Visit, body: bytes, receive: Receive) -> int:
        """Answer it, unless the client goes before."""
        task = asyncio.current_task()
        assert task is not None
        gone = False

        async def watch() -> None:
            nonlocal gone
            while (await receive())["type"] != "http.disconnect":
                continue
            gone = True
            task.cancel()

        watcher = asyncio.ensure_future(watch())
        try:
            await visit.run(body)
        except asyncio.CancelledError:
            if not gone or task.uncancel():
                raise
            self._router.metrics.disconnects.inc()
            return CLIENT_CLOSED_REQUEST
        finally:
            watcher.cancel()
        return visit.status

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes | None:
        """All of it, since it may be sent again; None when the client has gone. Raises ApiError for one too large."""
        settings, parts, size = self._router.settings, [], 0
        announced = header(scope["headers"], b"content-length") or "0"
        if announced.isdigit() and int(announced) > settings.max_body_bytes:
            raise body_too_large(settings.max_body_bytes)
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size > settings.max_body_bytes:
                raise body_too_large(settings.max_body_bytes)
            if self._router.buffered + size > settings.max_buffered_bytes:
                msg = f"requests of {settings.max_buffered_bytes} bytes are under way, which is this router's limit"
                raise ApiError(HTTPStatus.TOO_MANY_REQUESTS, msg, code="router_full", retry_after_s=1)
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    async def _refuse(self, refusal: ApiError, scope: Scope, receive: Receive, send: Send, identifier: str) -> int:
        response = refusal.to_response()
        response.headers["x-request-id"] = identifier
        await response(scope, receive, send)
        return refusal.status

    async def _health(self, send: Send) -> int:
        if not self._router.ready:
            reason = "the router is ending" if self._router.draining else "the router knows no replicas yet"
            raise unavailable(reason, "draining" if self._router.draining else "loading", 1)
        return await reply(send, b"", b"text/plain")

    async def _metrics(self, send: Send) -> int:
        return await reply(send, self._router.metrics.exposition(), b"text/plain; version=0.0.4; charset=utf-8")

    def _log(self, visit: Visit, scope: Scope, identifier: str, status: int, seconds: float) -> None:
        path = scope["path"]
        if path not in self._own:
            self._router.metrics.requests.labels(str(int(status))).inc()
        level = logging.DEBUG if path in QUIET_PATHS else logging.INFO
        if access.isEnabledFor(level):
            fields = {"request_id": identifier, "status": int(status), "duration_ms": round(seconds * 1000, 1)}
            fields |= {"client": scope["client"][0] if scope.get("client") else ""}
            access.log(level, "%s %s", scope["method"], path, extra=fields | visit.log_fields())


async def reply(send: Send, body: bytes, content_type: bytes, status: int = 200) -> int:
    """Send a whole answer."""
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
    return status
