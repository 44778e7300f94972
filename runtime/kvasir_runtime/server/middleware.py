"""What surrounds every request of both ports: its id, who may come in, the size of its body, one line in the log."""

import logging
import time
from collections.abc import Callable
from typing import Final

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvasir_runtime.edge.gates import Gate
from kvasir_runtime.edge.incoming import MAX_BODY_BYTES, QUIET_PATHS, body_too_large, check_length, usable_id
from kvasir_runtime.logs import request_id
from kvasir_runtime.server.errors import ApiError
from kvasir_runtime.server.outcomes import has_failed

LOG_FIELDS: Final = "kvasir.log_fields"
"""Key of the scope under which an endpoint leaves fields for its line in the log."""

logger = logging.getLogger("kvasir.access")


class RequestScope:
    """Gives each request an id (the client's X-Request-Id where it is usable), asks the gate, bounds its body."""

    def __init__(
        self,
        app: ASGIApp,
        gate: Gate,
        is_draining: Callable[[], bool] = lambda: False,
        count: Callable[[bool], None] = lambda _: None,
    ) -> None:
        """`count` hears of each request for text that was answered, or failed by the server's fault (True)."""
        self._app = app
        self._gate = gate
        self._is_draining = is_draining
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        token = request_id.set(usable_id(headers.get("x-request-id")))
        answer = _Answer(send, request_id.get(), close=self._is_draining())
        started = time.monotonic()
        leave: Callable[[], None] | None = None
        try:
            leave = self._gate.enter(scope["path"], headers)
            check_length(headers)
            await self._app(scope, _BoundedBody(receive).receive, answer.send)
        except ApiError as refusal:  # of the two checks: what the app raises it answers itself
            await refusal.to_response()(scope, receive, answer.send)
        finally:
            if leave is not None:
                leave()
            _log(scope, answer.status, time.monotonic() - started)
            failed = has_failed(scope, answer.status)
            if failed is not None:
                self._count(failed)
            request_id.reset(token)


class _BoundedBody:
    """Counts a body that did not say its length."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._size = 0

    async def receive(self) -> Message:
        message = await self._receive()
        self._size += len(message.get("body", b""))
        if self._size > MAX_BODY_BYTES:
            error = body_too_large()
            raise HTTPException(error.status, str(error))  # the one class that FastAPI lets through from a body
        return message


class _Answer:
    """Adds the request's id to the answer and remembers its status."""

    def __init__(self, send: Send, identifier: str, *, close: bool) -> None:
        self._send = send
        self._headers = [(b"x-request-id", identifier.encode())]
        if close:  # a draining server's clients should go to another one
            self._headers.append((b"connection", b"close"))
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", []), *self._headers]
        await self._send(message)


def _log(scope: Scope, status: int, seconds: float) -> None:
    level = logging.DEBUG if scope["path"] in QUIET_PATHS else logging.INFO
    if logger.isEnabledFor(level):
        fields = {"status": status, "duration_ms": round(seconds * 1000, 1), "client": _client(scope)}
        fields |= scope.get(LOG_FIELDS, {})
        logger.log(level, "%s %s", scope["method"], scope["path"], extra=fields)


def _client(scope: Scope) -> str:
    return scope["client"][0] if scope.get("client") else ""
