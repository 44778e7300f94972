"""The whole process: its start, its end."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys

import httpx

from tests.kvasir_router.backends import FakeReplica


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


async def test_sigterm_lets_streams_finish(tmp_path):
    """Not ready any more, a running request finishes, then the process ends with 0; its log is JSON."""
    release = asyncio.Event()

    async def when_released(reader, writer, seen):
        await release.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone")

    replica = FakeReplica("a", when_released)
    await replica.start()
    (tmp_path / "endpoints.json").write_text(json.dumps({"endpoints": [replica.endpoint().model_dump(mode="json")]}))
    port, admin = free_port(), free_port()
    command = [sys.executable, "-m", "kvasir_router", "--port", str(port), "--admin-port", str(admin)]
    command += ["--endpoints-file", str(tmp_path / "endpoints.json"), "--drain-delay", "0", "--log-format", "json"]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ)  # noqa: ASYNC220 - once
    try:
        async with httpx.AsyncClient(timeout=60) as client:
            url = f"http://127.0.0.1:{port}"
            await is_ready(client, url)
            asking = asyncio.create_task(client.post(f"{url}/v1/completions", json={"prompt": "x"}))
            while not replica.seen:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            while (await client.get(f"http://127.0.0.1:{admin}/readyz")).status_code == 200:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert not asking.done()
            release.set()
            assert (await asking).content == b"done"
        _, log = await asyncio.to_thread(process.communicate, timeout=60)
    finally:
        process.kill()
        await replica.stop()
    assert process.returncode == 0
    lines = [json.loads(line) for line in log.splitlines()]
    assert [line["message"] for line in lines] == ["ready", "stopping", "POST /v1/completions", "stopped"]
    assert (lines[2]["replica"], lines[2]["status"]) == ("a", 200)


async def is_ready(client: httpx.AsyncClient, url: str) -> None:
    while True:
        try:
            if (await client.get(f"{url}/ready")).status_code == 200:
                return
        except httpx.TransportError:
            await asyncio.sleep(0.02)


def test_a_bad_start_says_why():
    """The flag and the value, in one line, with the status of bad arguments."""
    command = [sys.executable, "-m", "kvasir_router", "--endpoints-file", "/does/not/exist", "--port", str(free_port())]
    command += ["--admin-port", str(free_port())]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60, check=False)
    assert ended.returncode == 2
    assert "/does/not/exist (--endpoints-file)" in ended.stderr
