"""One request's way through the router: it finds a replica, and the answer passes through as it comes.

| what happens                                             | then                                                    |
|----------------------------------------------------------|---------------------------------------------------------|
| no replica may be asked                                  | held, at most `hold_timeout_s`, then 429                |
| a replica cannot be reached                              | sent to another, or held                                |
| it answers 503 because it drains, loads, sleeps or ends  | sent to another, or held                                |
| it breaks off before the first byte of the body          | sent to another, within the budget                      |
| it answers 429, and another may be asked                 | sent to another                                         |
| it breaks off later                                      | a last event with an error; else the connection closes  |
| the client goes                                          | the connection to the replica is closed                 |

Only requests for text, tokens and lists are sent again. The head of an event stream is passed on with its first bytes.
"""

import asyncio
import json
from http import HTTPStatus
from typing import Final

from starlette.types import Scope, Send

from kvasir_router.exchange import answer_headers, header, is_event_stream, request_head
from kvasir_router.fleet import Endpoint
from kvasir_router.policies import Choice
from kvasir_router.prompts import Ask, read_ask
from kvasir_router.router import Router
from kvasir_router.upstream import Connection, Trouble, UpstreamError
from kvasir_runtime.edge.errors import ApiError, unavailable

MAX_FAILURES: Final = 3
"""Replicas that may break off over one request. Those that refuse it are bounded by the time that it may be held."""

REPEATABLE_POSTS: Final = frozenset(
    {"/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/tokenize", "/detokenize"}
)

NOT_NOW: Final = frozenset({"draining", "loading", "sleeping", "request_ended"})
"""Codes of a replica's 503 with which another one should be asked."""

MAX_ERROR_BYTES: Final = 64 * 1024
"""Of an answer that is looked into before it is passed on."""

FAILED_EVENT: Final = b'data: {"error":'
DONE: Final = b"data: [DONE]\n\n"


class TryAnotherError(Exception):
    """Nothing of an answer was passed on, and another replica may be asked. `harmless`: this one did no work for it."""

    def __init__(self, cause: str, message: str, *, harmless: bool) -> None:
        super().__init__(message)
        self.cause = cause
        self.harmless = harmless


class Answer:
    """What a replica has answered so far: its head, and the body up to `body`."""

    def __init__(self, connection: Connection, body: bytes) -> None:
        self.connection = connection
        self.body = body

    def error_code(self) -> str | None:
        """The `code` of an error in OpenAI's shape, as body or as first event."""
        try:
            return str(json.loads(self.body.removeprefix(b"data: ").split(b"\n\n")[0])["error"]["code"])
        except (ValueError, KeyError, TypeError, IndexError):
            return None


class Visit:
    """One request's way through the router."""

    def __init__(self, router: Router, scope: Scope, send: Send, request_id: str) -> None:
        self._router = router
        self._scope = scope
        self._send = send
        self._request_id = request_id
        self._tried: set[str] = set()
        self._began = router.clock()
        self._held_s = 0.0
        self.attempts = 0
        self.choice: Choice | None = None
        self.status = 0
        self.sent_bytes = 0
        self._failures = 0
        self._events = False
        self.first_byte_s: float | None = None
        self.trouble = ""

    @property
    def repeatable(self) -> bool:
        return self._scope["method"] in {"GET", "HEAD"} or self._scope["path"] in REPEATABLE_POSTS

    async def run(self, body: bytes) -> None:
        """Answer the request; raises ApiError while nothing has been sent."""
        self._began, headers = self._router.clock(), self._scope["headers"]
        ask = read_ask(body, header(headers, self._router.settings.session_header.lower().encode()))
        head = request_head(self._scope, self._request_id, len(body))
        while True:
            endpoint = await self._find(ask)
            try:
                await self._attempt(endpoint, head, body)
            except TryAnotherError as failure:
                self._after(failure)
            else:
                return
            finally:
                self._router.end(ask, endpoint)

    def log_fields(self) -> dict[str, object]:
        """What the access log tells of it."""
        fields: dict[str, object] = {"attempts": self.attempts, "bytes": self.sent_bytes}
        if self.choice is not None:
            fields |= {"replica": self.choice.name, "why": self.choice.reason}
        if self.first_byte_s is not None:
            fields["first_byte_ms"] = round(self.first_byte_s * 1000, 1)
        if self._held_s:
            fields["held_ms"] = round(self._held_s * 1000, 1)
        if self.trouble:
            fields["trouble"] = self.trouble
        return fields

    async def _find(self, ask: Ask) -> Endpoint:
        """A replica, as soon as there is one."""
        router = self._router
        try:
            if len(router.room) or not router.fleet.available(router.clock()):
                await self._hold()
            choice = router.choose(ask, self._tried)
            if choice is None:
                raise unavailable("no replica can be reached; try again", "no_replica", 1)
            self.choice, self.attempts = choice, self.attempts + 1
            return router.begin(ask, choice)
        finally:
            router.room.look()  # after the replica has one more, or this one has given up

    async def _hold(self) -> None:
        router, config = self._router, self._router.config
        bound = config.max_held_requests if config else router.settings.max_held_requests
        timeout = config.hold_timeout_s if config else router.settings.hold_timeout
        if len(router.room) >= bound:
            raise self._come_back(f"no replica is ready, and {bound} requests wait already")
        began = router.clock()
        try:
            if not await router.room.wait(timeout - self._held_s):
                raise self._come_back(f"no replica was ready within {timeout:g} s")
        finally:
            waited = router.clock() - began
            self._held_s += waited
            router.metrics.held.observe(waited)

    def _come_back(self, message: str) -> ApiError:
        after = self._router.cold_start_left_s()
        return ApiError(HTTPStatus.TOO_MANY_REQUESTS, message, code="no_replica_ready", retry_after_s=after)

    async def _attempt(self, endpoint: Endpoint, head: bytes, body: bytes) -> None:
        """Ask one replica and pass its answer on; raises TryAnotherError while nothing was passed on."""
        router, health = self._router, endpoint.health
        connection: Connection | None = None
        try:
            connection, first = await self._ask(endpoint, head, body)
            answer = Answer(connection, first)
            await self._judge(endpoint, answer)
            health.succeeded()
            await self._pass_on(answer)
        except UpstreamError as error:
            harmless = error.trouble is Trouble.CONNECT
            health.failed(router.clock(), passed_over=harmless)
            self.trouble = f"{error.trouble}: {error}"
            if self.status == 0:
                raise TryAnotherError(error.trouble, str(error), harmless=harmless) from error
            await self._break_off(str(error))
        except asyncio.CancelledError:
            health.gave_up()
            raise
        finally:
            if connection is not None:
                router.pool.give_back(connection)

    async def _ask(self, endpoint: Endpoint, head: bytes, body: bytes) -> tuple[Connection, bytes]:
        """Send it; returns with the answer's head and the first of its body. A kept connection may have been closed."""
        address, head_only = endpoint.spec.address, self._scope["method"] == "HEAD"
        for fresh in (False, True):
            connection = await self._router.pool.take(address, fresh=fresh)
            if self.attempts == 1 and not fresh:
                self._router.metrics.routing.observe(self._router.clock() - self._began - self._held_s)
            try:
                connection.send(head, body, head_only=head_only)
                await connection.head()
                return connection, b"" if head_only else await connection.read()
            except UpstreamError as error:
                self._router.pool.give_back(connection)
                if not (error.stale and self.repeatable and not fresh):
                    raise
            except asyncio.CancelledError:
                connection.abort()
                self._router.pool.give_back(connection)
                raise
        raise AssertionError("a fresh connection is never stale")

    async def _judge(self, endpoint: Endpoint, answer: Answer) -> None:
        """Raise TryAnotherError for an answer with which another replica should be asked."""
        connection, health, now = answer.connection, endpoint.health, self._router.clock()
        status = connection.status
        failed_stream = status == 200 and answer.body.startswith(FAILED_EVENT) and is_event_stream(connection.headers)
        if not failed_stream and status not in {429, 500, 502, 503, 504}:
            return
        while not failed_stream and len(answer.body) < MAX_ERROR_BYTES and (more := await connection.read()):
            answer.body += more
        code = answer.error_code()
        if code in NOT_NOW or (status == 503 and code is None):
            health.refused(now)
            raise TryAnotherError(
                code or "unavailable", f"the replica is not available: {code or status}", harmless=True
            )
        if code == "engine_died" or status in {502, 504}:
            health.failed(now)
            raise TryAnotherError(code or str(status), f"the replica failed: {code or status}", harmless=False)
        if status == 429 and self._has_other():
            health.gave_up()
            raise TryAnotherError("busy", "the replica's queue is full", harmless=True)

    def _has_other(self) -> bool:
        tried = {*self._tried, self.choice.name if self.choice else ""}
        return self._router.fleet.choose(Ask(), self._router.clock(), tried) is not None

    def _after(self, failure: TryAnotherError) -> None:
        """Return when the request is to be sent to another replica; raises ApiError when it was sent often enough."""
        router = self._router
        if self.choice is not None:
            self._tried.add(self.choice.name)
        self._failures += not failure.harmless
        if self.repeatable and (failure.harmless or (self._failures < MAX_FAILURES and router.budget.spend())):
            router.metrics.retries.labels(failure.cause).inc()
            return
        if failure.cause == Trouble.SILENT:
            raise ApiError(HTTPStatus.GATEWAY_TIMEOUT, str(failure), code="replica_silent")
        raise ApiError(HTTPStatus.BAD_GATEWAY, str(failure), code="replica_failed", retry_after_s=1)

    async def _pass_on(self, answer: Answer) -> None:
        connection, chunk = answer.connection, answer.body
        self.first_byte_s = self._router.clock() - self._began - self._held_s
        self._router.metrics.first_byte.observe(self.first_byte_s)
        self.status, self._events = connection.status, is_event_stream(connection.headers)
        headers = answer_headers(connection.headers, self._request_id, close=self._router.draining)
        await self._send({"type": "http.response.start", "status": self.status, "headers": headers})
        while chunk:
            self.sent_bytes += len(chunk)
            last = connection.at_end
            await self._send({"type": "http.response.body", "body": chunk, "more_body": not last})
            if last:
                return
            chunk = await connection.read()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _break_off(self, message: str) -> None:
        """The replica broke off in the middle: say so where that is possible. Else the server closes the connection."""
        error = unavailable(f"{message}; send the request again", "replica_failed", 1)
        if self._events:
            event = b"data: " + json.dumps(error.body.model_dump()).encode() + b"\n\n" + DONE
            await self._send({"type": "http.response.body", "body": event, "more_body": False})
