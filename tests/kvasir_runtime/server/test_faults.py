"""What breaks ends in a clear state: an error to every client in flight, the reason for the kubelet, no orphans."""

import asyncio
import contextlib
import os
import signal
import threading
import time

import httpx
import pytest

from kvasir_runtime.contract.failures import Cause, FailureReport
from tests.kvasir_runtime.server.harness import is_running, wait_until

SLOW = {"prompt": "def foo(", "max_tokens": 2000, "cache_salt": "slow"}


def complete_in_background(server, **body) -> None:
    """Send a request that will never be answered well."""

    def work() -> None:
        with contextlib.suppress(httpx.TransportError):
            server.complete(**body)

    threading.Thread(target=work, daemon=True).start()


async def break_under_load(server, break_it) -> tuple[httpx.Response, bytes]:
    """Have one whole and one streamed request run, break something, return what both clients got."""
    async with httpx.AsyncClient(timeout=120) as client:
        url = f"{server.url}/v1/completions"
        whole = asyncio.create_task(client.post(url, json=SLOW))
        stream = asyncio.create_task(client.post(url, json={**SLOW, "stream": True}))
        await asyncio.to_thread(wait_until, lambda: server.admin("GET", "/admin/state").json()["running"] == 2)
        await asyncio.to_thread(break_it)
        return await whole, (await stream).content


def assert_failed(server, whole: httpx.Response, stream: bytes, message: str) -> None:
    assert whole.status_code == 500
    assert whole.json()["error"]["code"] == "engine_died"
    assert message in whole.json()["error"]["message"]
    assert stream.endswith(b"data: [DONE]\n\n")
    assert b'"code":"engine_died"' in stream
    assert server.process.wait(60) == 1
    report = FailureReport.from_json(server.termination_log.read_text())
    assert report is not None
    assert report.cause is Cause.ENGINE_DIED
    assert message in report.message


async def test_engine_killed(start_server):
    """Kill -9 of the engine: errors to both clients, the reason written, exit status 1, sockets gone."""
    server = start_server().wait_ready()
    engine = server.engine_pid
    whole, stream = await break_under_load(server, lambda: os.kill(engine, signal.SIGKILL))
    assert_failed(server, whole, stream, "was killed by SIGKILL while it served")
    assert server.failure["detail"]["exit_status"] == -9


async def test_engine_raises_in_a_step(start_server):
    """An exception in a step ends the process with its type, its words and a traceback."""
    server = start_server().wait_ready()
    whole, stream = await break_under_load(server, lambda: server.complete(cache_salt="raise"))
    assert_failed(server, whole, stream, "RuntimeError: told to raise")
    assert "fake_core.py" in server.failure["detail"]["traceback"]


async def test_engine_exits_silently(start_server):
    """An engine that ends without a word is noticed as well."""
    server = start_server().wait_ready()
    whole, stream = await break_under_load(server, lambda: server.complete(cache_salt="exit"))
    assert_failed(server, whole, stream, "exited with status 3")


async def test_peer_gone(start_server):
    """An engine whose sockets to the front end are gone ends, and nobody waits for it."""
    server = start_server().wait_ready()
    engine = server.engine_pid
    whole, stream = await break_under_load(server, lambda: complete_in_background(server, cache_salt="disconnect"))
    assert whole.status_code == 500
    assert whole.json()["error"]["code"] == "engine_died"
    assert b'"code":"engine_died"' in stream
    assert await asyncio.to_thread(server.process.wait, 60) == 1
    assert server.failure["cause"] == Cause.ENGINE_DIED
    assert not is_running(engine)


def test_engine_dies_idle(start_server):
    """Nobody needs to ask anything for a dead engine to end the process."""
    server = start_server().wait_ready()
    os.kill(server.engine_pid, signal.SIGKILL)
    assert server.process.wait(60) == 1
    assert server.failure["cause"] == Cause.ENGINE_DIED


@pytest.mark.parametrize("state", ["serving", "loading", "engine stopped"])
def test_front_end_killed(start_server, state, tmp_path):
    """Kill -9 of the front end takes the engine along, also while it loads or is stopped; the port is free again."""
    environment = {"TMPDIR": str(tmp_path), "FAKE_CORE_START": "block" if state == "loading" else ""}
    server = start_server(env=environment)
    if state == "loading":
        wait_until(lambda: "half of nothing" in server.log)
    else:
        server.wait_ready()
        wait_until(lambda: server.probe("/livez").status_code == 200 and not list(tmp_path.glob("kvasir-*")))
    engine = server.engine_pid
    if state == "engine stopped":
        os.kill(engine, signal.SIGSTOP)
    server.process.kill()
    server.process.wait()
    wait_until(lambda: not is_running(engine), timeout_s=20)
    if state != "loading":
        assert not list(tmp_path.glob("kvasir-*")), "sockets were left behind"
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url)


def test_sigterm_with_a_stopped_engine(start_server):
    """A drain does not wait for an engine that cannot work: with nothing in flight the process ends at once."""
    server = start_server().wait_ready()
    engine = server.engine_pid
    os.kill(engine, signal.SIGSTOP)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0
    assert not is_running(engine)


@pytest.mark.slow
async def test_engine_stopped(start_server):
    """SIGSTOP: alive for a while, dead after about 18 s, then errors to all clients, exit 1, and no engine left."""
    server = start_server().wait_ready()
    engine = server.engine_pid
    stopped_at = 0.0

    def stop() -> None:
        nonlocal stopped_at
        stopped_at = time.monotonic()
        os.kill(engine, signal.SIGSTOP)
        threading.Event().wait(10)
        assert server.probe("/livez").status_code == 200
        wait_until(lambda: server.probe("/livez").status_code == 503, timeout_s=stopped_at + 40 - time.monotonic())

    whole, stream = await break_under_load(server, stop)
    assert time.monotonic() - stopped_at < 90
    assert_failed(server, whole, stream, "the engine does not respond: no heartbeat for")
    assert not is_running(engine)


@pytest.mark.slow
def test_stuck_step(start_server):
    """A step that waits for ever without using the CPU is dead after 18 s; the rest is for a busy machine."""
    server = start_server().wait_ready()
    complete_in_background(server, cache_salt="block")
    wait_until(lambda: server.probe("/livez").status_code == 503, timeout_s=40)
    assert "uses no CPU: it is stuck" in server.probe("/livez").json()["message"]
    assert server.process.wait(60) == 1


@pytest.mark.slow
async def test_full_queue_and_paused_client_are_alive(start_server):
    """Half a minute of a full queue and of a client that reads nothing: alive and ready all the while."""
    server = start_server("--max-num-seqs", "1", "--max-queued-requests", "1").wait_ready()
    body = {**SLOW, "max_tokens": 2000, "stream": True}
    async with (
        httpx.AsyncClient(timeout=60) as client,
        client.stream("POST", f"{server.url}/v1/completions", json=body) as paused,
    ):
        assert paused.status_code == 200
        queued = asyncio.create_task(client.post(f"{server.url}/v1/completions", json=body))
        until = time.monotonic() + 30
        while time.monotonic() < until:
            await asyncio.to_thread(threading.Event().wait, 1)
            assert (await client.get(f"{server.admin_url}/livez")).status_code == 200
            assert (await client.get(f"{server.admin_url}/readyz")).status_code == 200
        assert (await client.post(f"{server.url}/v1/completions", json=SLOW)).status_code == 429
        queued.cancel()


@pytest.mark.slow
def test_long_step_is_alive(start_server):
    """A step of half a minute that works is alive all the while: long prefills are no stalls."""
    server = start_server().wait_ready()
    complete_in_background(server, cache_salt="spin")
    until = time.monotonic() + 30
    while time.monotonic() < until:
        threading.Event().wait(1)
        assert server.probe("/livez").status_code == 200
    server.process.kill()
