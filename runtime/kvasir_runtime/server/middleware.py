"""What surrounds every request of both ports: its id, who may come in, the size of its body, one line in the log."""

import logging
import re
import time
import uuid
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvasir_runtime.logs import request_id
from kvasir_runtime.server.errors import ApiError
from kvasir_runtime.server.gates import Gate

MAX_BODY_BYTES: Final = 32 * 1024 * 1024
"""A prompt of 1,000,000 token ids takes 7 MB of JSON."""

LOG_FIELDS: Final = "kvasir.log_fields"
"""Key of the scope under which an endpoint leaves fields for its line in the log."""

QUIET_PATHS: Final = frozenset({"/health", "/metrics", "/livez", "/readyz", "/startupz", "/admin/state"})
"""Asked every few seconds by machines: logged at debug level only."""

_USABLE_ID: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

logger = logging.getLogger("kvasir.access")


class RequestScope:
    """Gives each request an id (the client's X-Request-Id where it is usable), asks the gate, bounds its body."""

    def __init__(self, app: ASGIApp, gate: Gate, is_draining: Callable[[], bool] = lambda: False) -> None:
        self._app = app
        self._gate = gate
        self._is_draining = is_draining

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
            _check_length(headers)
            await self._app(scope, _BoundedBody(receive).receive, answer.send)
        except ApiError as refusal:  # of the two checks: what the app raises it answers itself
            await refusal.to_response()(scope, receive, answer.send)
        finally:
            if leave is not None:
                leave()
            _log(scope, answer.status, time.monotonic() - started)
            request_id.reset(token)


def usable_id(given: str | None) -> str:
    """The client's id if it is safe to log and to send back, else a new one."""
    return given if given is not None and _USABLE_ID.fullmatch(given) else uuid.uuid4().hex


def _check_length(headers: Headers) -> None:
    length = headers.get("content-length", "0")
    if length.isdigit() and int(length) > MAX_BODY_BYTES:
        raise body_too_large()


def body_too_large() -> ApiError:
    msg = f"the request body must be at most {MAX_BODY_BYTES} bytes"
    return ApiError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, msg, code="body_too_large")


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
