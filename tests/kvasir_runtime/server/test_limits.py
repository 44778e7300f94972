"""Who may have work done and how much: keys, a bounded queue, and nothing for clients that have gone."""

import asyncio

import httpx
import pytest

from tests.kvasir_runtime.server.harness import call, wait_until

SLOW = {"prompt": "def foo(", "max_tokens": 2000, "cache_salt": "slow"}


def admin_state(server):
    return server.admin("GET", "/admin/state").json()


async def test_full_queue(start_server):
    """Beyond the bound new requests get 429 with Retry-After; those in the queue stay."""
    server = start_server("--max-num-seqs", "1", "--max-queued-requests", "2").wait_ready()
    url = f"{server.url}/v1/completions"
    async with httpx.AsyncClient(timeout=60) as client:
        tasks = [asyncio.create_task(client.post(url, json=SLOW)) for _ in range(3)]
        await asyncio.to_thread(wait_until, lambda: admin_state(server)["waiting"] == 2)
        refused = await client.post(url, json=SLOW)
        assert refused.status_code == 429
        assert refused.json()["error"] == {
            "message": "the queue is full: 2 requests wait, the limit is 2",
            "type": "rate_limit_error",
            "param": None,
            "code": "queue_full",
        }
        assert int(refused.headers["retry-after"]) >= 1
        assert admin_state(server)["inflight"] == 3
        for task in tasks:
            task.cancel()


async def test_queue_bounded_in_tokens(start_server):
    """A bound in prompt tokens lets a long prompt into an empty queue only."""
    server = start_server("--max-num-seqs", "1", "--max-queued-tokens", "100").wait_ready()
    url = f"{server.url}/v1/completions"
    async with httpx.AsyncClient(timeout=60) as client:
        tasks = [asyncio.create_task(client.post(url, json={**SLOW, "prompt": [40] * 90, "max_tokens": 1900}))]
        await asyncio.to_thread(wait_until, lambda: admin_state(server)["running"] == 1)
        tasks.append(asyncio.create_task(client.post(url, json={**SLOW, "prompt": [40] * 200, "max_tokens": 1800})))
        await asyncio.to_thread(wait_until, lambda: admin_state(server)["waiting"] == 1)
        refused = await client.post(url, json={**SLOW, "prompt": [40]})
        assert refused.status_code == 429
        assert "200 prompt tokens wait, the limit is 100" in refused.json()["error"]["message"]
        for task in tasks:
            task.cancel()


@pytest.mark.parametrize("stream", [False, True])
async def test_disconnect_ends_running_and_queued_work(start_server, stream):
    """A client that goes away frees its seat and its place in the queue."""
    server = start_server("--max-num-seqs", "1").wait_ready()
    url = f"{server.url}/v1/completions"
    async with httpx.AsyncClient(timeout=60) as client:
        tasks = [asyncio.create_task(client.post(url, json={**SLOW, "stream": stream})) for _ in range(3)]
        await asyncio.to_thread(wait_until, lambda: admin_state(server)["waiting"] == 2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.to_thread(
        wait_until, lambda: all(admin_state(server)[name] == 0 for name in ("inflight", "waiting", "running"))
    )
    assert server.complete(max_tokens=1).status_code == 200
    expected = 2 if stream else 3  # the running stream had its 200 already
    wait_until(lambda: sum('"status": 499' in line for line in server.log.splitlines()) == expected)


def test_api_keys_reloaded(start_server, tmp_path):
    """Keys from flag and file open the door; a changed file counts without a restart, a broken one changes nothing."""
    file = tmp_path / "keys"
    file.write_text("first-key\n\nsecond-key\n")
    server = start_server("--api-key", "flag-key", "--api-key-file", str(file)).wait_ready()

    def status(key: str | None) -> int:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return call("GET", f"{server.url}/v1/models", headers=headers).status_code

    assert [status(key) for key in ("flag-key", "first-key", "second-key")] == [200] * 3
    assert [status(key) for key in (None, "wrong", "first")] == [401] * 3
    for path in ("/health", "/metrics", "/version", "/docs", "/openapi.json"):
        assert call("GET", server.url + path).status_code == 200, path
    for path in ("/tokenize", "/v1/completions"):
        assert call("POST", server.url + path, json={"prompt": "x"}).json()["error"]["code"] == "invalid_api_key", path
    file.write_text("third-key\n")
    wait_until(lambda: status("third-key") == 200)
    assert status("first-key") == 401
    file.write_text("\n")
    wait_until(lambda: "kept the old tokens" in server.log or status("third-key") != 200)
    assert status("third-key") == 200


async def test_streams_of_one_key_are_bounded(start_server):
    """One key's third generation gets 429 while two are under way; other keys and other paths are not concerned."""
    server = start_server("--api-key", "first,second", "--max-streams-per-key", "2").wait_ready()
    url, body = f"{server.url}/v1/completions", {**SLOW, "stream": True}
    async with httpx.AsyncClient(timeout=60) as client:

        def post(key: str, **fields):
            return client.post(url, json={**body, **fields}, headers={"Authorization": f"Bearer {key}"})

        tasks = [asyncio.create_task(post("first")) for _ in range(2)]
        await asyncio.to_thread(wait_until, lambda: admin_state(server)["running"] == 2)
        refused = await post("first")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_streams")
        assert "2 requests of this API key are under way" in refused.json()["error"]["message"]
        assert refused.headers["retry-after"] == "1"
        assert (await post("second", max_tokens=1)).status_code == 200
        models = await client.get(f"{server.url}/v1/models", headers={"Authorization": "Bearer first"})
        assert models.status_code == 200
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(wait_until, lambda: admin_state(server)["inflight"] == 0)
        assert (await post("first", max_tokens=1)).status_code == 200


def test_a_bound_by_key_needs_keys(start_server):
    """Without keys there is nothing to count by: refused at the start."""
    server = start_server("--max-streams-per-key", "2")
    assert server.process.wait(60) == 2
    assert "max_streams_per_key counts by API key" in server.failure["message"]
