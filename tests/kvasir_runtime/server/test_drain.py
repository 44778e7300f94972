"""How a server stops: streams that run are not lost, what is cut hears of it."""

import asyncio
import json
import signal
import socket
from typing import Any

import httpx
import pytest

from tests.kvasir_runtime.server.harness import is_running, wait_until

SLOW = {"prompt": "def foo(", "stream": True, "cache_salt": "slow"}


async def read_stream(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> list[Any]:
    """All events of a streamed completion, parsed; `[DONE]` as a string."""
    events = []
    async with client.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as reply:
        assert reply.status_code == 200, await reply.aread()
        async for line in reply.aiter_lines():
            if line.startswith("data: "):
                data = line.removeprefix("data: ")
                events.append(data if data == "[DONE]" else json.loads(data))
    return events


def inflight(server):
    return server.admin("GET", "/admin/state").json()["inflight"]


async def test_sigterm_loses_no_stream(start_server):
    """64 streams under SIGTERM: each gets every token and its end; new work gets 503; the process exits with 0."""
    server = start_server().wait_ready()
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(limits=limits) as client:
        streams = [
            asyncio.create_task(
                read_stream(client, server.url, {**SLOW, "max_tokens": 80 + number % 4, "return_token_ids": True})
            )
            for number in range(64)
        ]
        await asyncio.to_thread(wait_until, lambda: inflight(server) == 64)
        server.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(wait_until, lambda: server.probe("/readyz").status_code == 503)
        refused = await client.post(f"{server.url}/v1/completions", json={"prompt": "x"})
        assert refused.status_code == 503
        assert "retry-after" in refused.headers
        for number, events in enumerate(await asyncio.gather(*streams)):
            assert events[-1] == "[DONE]"
            assert events[-2]["choices"][0]["finish_reason"] == "length"
            assert sum(len(event["choices"][0]["token_ids"]) for event in events[:-1]) == 80 + number % 4
    assert await asyncio.to_thread(server.process.wait, 40) == 0
    assert not server.termination_log.exists()


async def test_deadline_cuts_with_an_error_event(start_server):
    """What still runs when the drain's time is up ends with an error event, and the process with 0."""
    server = start_server("--drain-timeout", "500ms").wait_ready()
    async with httpx.AsyncClient() as client:
        stream = asyncio.create_task(read_stream(client, server.url, {**SLOW, "max_tokens": 2000}))
        await asyncio.to_thread(wait_until, lambda: inflight(server) == 1)
        server.process.send_signal(signal.SIGTERM)
        events = await stream
    assert events[-1] == "[DONE]"
    assert events[-2]["error"]["code"] == "request_ended"
    assert "drain deadline has passed" in events[-2]["error"]["message"]
    assert await asyncio.to_thread(server.process.wait, 40) == 0


@pytest.mark.slow
def test_a_client_that_does_not_read_cannot_keep_the_process(start_server):
    """A paused client is no fault; at the deadline it has its last five seconds."""
    server = start_server("--drain-timeout", "200ms").wait_ready()
    body = json.dumps({"prompt": [40], "n": 128, "max_tokens": 150, "stream": True, "logprobs": 20})
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(f"{head}\r\n\r\n{body}".encode())
        assert client.recv(12) == b"HTTP/1.1 200"
        assert inflight(server) == 1
        assert server.probe("/livez").status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(40) == 0


async def test_second_sigterm_cuts(start_server):
    """The second signal does not wait for the deadline; unstreamed requests get 503."""
    server = start_server().wait_ready()
    async with httpx.AsyncClient() as client:
        body = {**SLOW, "max_tokens": 2000, "stream": False}
        whole = asyncio.create_task(client.post(f"{server.url}/v1/completions", json=body, timeout=60))
        await asyncio.to_thread(wait_until, lambda: inflight(server) == 1)
        server.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(wait_until, lambda: server.probe("/readyz").status_code == 503)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        reply = await whole
    assert reply.status_code == 503
    assert "told to stop at once" in reply.json()["error"]["message"]
    assert await asyncio.to_thread(server.process.wait, 40) == 0


async def test_admin_drain_cuts_at_its_deadline_and_stays(start_server):
    """An operator's drain cuts too, but the process stays and can serve again."""
    server = start_server().wait_ready()
    async with httpx.AsyncClient() as client:
        stream = asyncio.create_task(read_stream(client, server.url, {**SLOW, "max_tokens": 2000}))
        await asyncio.to_thread(wait_until, lambda: inflight(server) == 1)
        server.admin("POST", "/admin/drain", json={"timeout_s": 0.2})
        assert (await stream)[-2]["error"]["code"] == "request_ended"
    assert inflight(server) == 0
    server.admin("POST", "/admin/undrain")
    assert server.complete(max_tokens=2).status_code == 200


async def test_undrain_is_too_late_after_sigterm(start_server):
    """A process that was told to end cannot be talked out of it: 409."""
    server = start_server().wait_ready()
    async with httpx.AsyncClient() as client:
        stream = asyncio.create_task(read_stream(client, server.url, {**SLOW, "max_tokens": 40}))
        await asyncio.to_thread(wait_until, lambda: inflight(server) == 1)
        server.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(wait_until, lambda: server.probe("/readyz").status_code == 503)
        assert server.admin("POST", "/admin/undrain").status_code == 409
        assert (await stream)[-1] == "[DONE]"


def test_sigterm_while_loading(start_server):
    """A start that is called off ends at once and leaves no engine."""
    server = start_server(env={"FAKE_CORE_START": "block"})
    wait_until(lambda: "half of nothing" in server.log)
    engine = server.engine_pid
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0
    wait_until(lambda: not is_running(engine))
