"""Small HTTP servers to talk to: what comes over the wire is real, who answers is not."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer


@dataclass
class Recorder:
    """Answers every request with the next of `answers`, and keeps what was asked."""

    answers: list[web.Response | Callable[[], Awaitable[web.Response]]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""
    port: int = 0

    async def handle(self, request: web.Request) -> web.Response:
        text = await request.text()
        self.requests.append(
            {
                "method": request.method,
                "path": request.path,
                "query": dict(request.query),
                "headers": dict(request.headers),
                "body": text,
            }
        )
        answer = self.answers.pop(0)
        return answer if isinstance(answer, web.Response) else await answer()


@pytest.fixture
async def server() -> AsyncIterator[Recorder]:
    """A server on this machine."""
    recorder = Recorder()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", recorder.handle)
    async with TestServer(app) as running:
        recorder.url = str(running.make_url("")).rstrip("/")
        recorder.port = running.port or 0
        yield recorder
