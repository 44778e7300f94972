"""Whole servers with the committed model: one's hot prefixes warm up another, and a sleeping one gives memory back."""

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.kvasir_runtime.server.harness import Server, call, launch, wait_until

pytestmark = pytest.mark.slow

FLAGS = ("--served-model-name", "tiny", "--num-threads", "1", "--kv-cache-memory", "64Mi")
SYSTEM = "You are a helpful assistant that answers questions about Python briefly and with one example. " * 4


def start(folder: Path) -> Server:
    server = launch(folder, *FLAGS, fake=False)
    wait_until(server._is_ready, timeout_s=90)
    return server


def complete(server: Server, prompt: str, **fields: object) -> Any:
    body = {"prompt": prompt, "max_tokens": 4, "temperature": 0, **fields}
    return call("POST", f"{server.url}/v1/completions", json=body, timeout=60).json()


def cached_tokens(server: Server, prompt: str) -> int:
    return int(complete(server, prompt)["usage"]["prompt_tokens_details"]["cached_tokens"])


def test_a_replica_warms_up_with_anothers_hot_prefixes(tmp_path):
    """What three requests had in common on one server is cached on the other before its first request."""
    old, new = start(tmp_path), start(tmp_path)
    for question in ("What is a list?", "What is a tuple?", "How do I sort?"):
        complete(old, SYSTEM + question)
        complete(old, "my secret " * 30, cache_salt="tenant")
    listed = old.admin("GET", "/admin/prefixes").json()["prefixes"]
    assert len(listed) == 1
    assert listed[0]["cached_tokens"] == len(listed[0]["token_ids"]) > 60
    prompts = [{"token_ids": prefix["token_ids"]} for prefix in listed]
    warmed = new.admin("POST", "/admin/warmup", json={"prompts": prompts}).json()
    assert warmed["ended"] == "done"
    assert warmed["pinned_tokens"] == len(listed[0]["token_ids"])
    assert cached_tokens(new, SYSTEM + "How do I reverse a list?") == len(listed[0]["token_ids"])
    assert "kvasir:warmup_tokens_total" in call("GET", f"{new.url}/metrics").text
    assert (old.stop(), new.stop()) == (0, 0)


async def test_users_do_not_wait_for_a_warmup(tmp_path):
    """Beside a warmup of a minute's work, a user's request takes about as long as alone, and the warmup goes on."""
    server = start(tmp_path)
    alone = min(timed(server) for _ in range(5))
    prompts = [{"token_ids": [3 + number % 900] * 1000} for number in range(1000)]
    async with httpx.AsyncClient(timeout=120) as client:
        headers = {"Authorization": "Bearer operator-token"}
        body = {"prompts": prompts, "max_tokens": 1_000_000, "timeout_s": 20}
        warmup = asyncio.create_task(client.post(f"{server.admin_url}/admin/warmup", json=body, headers=headers))
        await asyncio.to_thread(
            wait_until, lambda: server.admin("GET", "/admin/state").json()["kv"]["blocks_pinned"] > 0
        )
        beside = min([await asyncio.to_thread(timed, server) for _ in range(5)])
        state = (await warmup).json()
    assert beside < alone * 5 + 0.5, "one chunk of 256 tokens may be under way"
    assert state["computed_tokens"] > 1000
    assert server.stop() == 0


def timed(server: Server) -> float:
    started = time.monotonic()
    complete(server, "def add(a, b):")
    return time.monotonic() - started


@pytest.mark.parametrize("level", [1, 2])
def test_sleep_and_wake(tmp_path, level):
    """Memory goes back to the machine; awake, the server says the same as before."""
    server = start(tmp_path)
    prompts = [f"{number} {SYSTEM}" for number in range(12)]
    before = [complete(server, prompt)["choices"] for prompt in prompts]
    asleep = server.admin("POST", "/admin/sleep", json={"level": level}).json()
    assert (asleep["sleep_level"], asleep["freed_bytes"] > 0) == (level, True)
    assert server.complete(max_tokens=1).status_code == 503
    assert server.admin("POST", "/admin/wake").json()["sleep_level"] == 0
    assert [complete(server, prompt)["choices"] for prompt in prompts] == before
    assert server.stop() == 0
