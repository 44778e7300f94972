"""The operator port: probes without a token, /admin with it."""

import asyncio
import socket

import httpx
import pytest

from kvasir_runtime.contract.admin_api import (
    AdminState,
    AnswerState,
    LivenessState,
    Phase,
    PrefixList,
    ReadinessState,
    SleepState,
    WarmupEnd,
    WarmupState,
)
from tests.kvasir_runtime.server.harness import ADMIN_TOKEN, call, wait_until

VOCAB_SIZE = 3072
"""The fake core's."""


def test_probes_need_no_token(server):
    """A ready server is alive, started and ready, and says what the start took."""
    live = LivenessState.model_validate(server.probe("/livez").json())
    assert live.alive
    assert live.heartbeat_age_s < 5
    for path in ("/startupz", "/readyz"):
        reply = server.probe(path)
        state = ReadinessState.model_validate(reply.json())
        assert (reply.status_code, state.ready, state.startup.phase) == (200, True, Phase.SERVING)
        assert state.startup.seconds["total"] >= state.startup.seconds["weights"] >= 0


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "Basic operator-token", "operator-token", "Bearer"])
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/admin/state"), ("GET", "/admin/prefixes"), ("GET", "/admin/nothing")]
    + [("POST", f"/admin/{what}") for what in ("drain", "undrain", "warmup", "sleep", "wake")],
)
def test_admin_needs_the_token(server, method, path, authorization):
    """401 for whoever does not present the operator's token."""
    headers = {} if authorization is None else {"Authorization": authorization}
    reply = call(method, server.admin_url + path, headers=headers)
    assert reply.status_code == 401
    assert reply.json()["error"]["code"] == "invalid_token"


def test_user_port_has_no_admin(server):
    """The operator's endpoints are not to be found on the users' port."""
    for path in ("/admin/state", "/livez", "/readyz"):
        assert call("GET", server.url + path).status_code == 404


def test_admin_state(server):
    """Everything the operator plans with, after some work."""
    server.complete(max_tokens=3)
    state = AdminState.model_validate(server.admin("GET", "/admin/state").json())
    assert len(state.boot_id) == 32
    assert (state.model_digest, state.draining, state.inflight, state.running) == ("fake", False, 0, 0)
    assert state.kv is not None
    assert (state.kv.block_size, state.kv.blocks_total) == (16, 1024)
    assert state.capacity is not None
    assert (state.capacity.kv_tokens, state.capacity.max_model_len) == (16384, 2048)
    assert state.capacity.max_concurrent_sequences == 8
    assert state.latency.ttft_p95 is not None
    assert state.startup.phase is Phase.SERVING


def test_answers_and_failures_are_told_apart(server):
    """Status 503 and a stream that ends in an error have failed; a bad request, and one of another sort, is neither."""
    slow = {"cache_salt": "slow", "max_tokens": 2000, "timeout_s": 0.3}
    before = answers(server)
    assert server.complete(max_tokens=1).status_code == 200
    assert server.complete(max_tokens=0).status_code == 400
    assert server.complete(**slow).status_code == 503
    streamed = server.complete(**slow, stream=True)
    assert (streamed.status_code, b"deadline_exceeded" in streamed.content) == (200, True)
    assert call("GET", server.url + "/v1/models").status_code == 200
    after = answers(server)
    assert (after.answered - before.answered, after.failed - before.failed) == (1, 2)


def test_who_has_gone_did_not_fail(server):
    """A client that closes its connection while it reads."""
    before = answers(server)
    body = {"prompt": "x", "cache_salt": "slow", "max_tokens": 2000, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=30) as reply:
        next(reply.iter_bytes())
    wait_until(lambda: server.admin("GET", "/admin/state").json()["inflight"] == 0)
    assert answers(server).failed == before.failed


def answers(server) -> AnswerState:
    found = AdminState.model_validate(server.admin("GET", "/admin/state").json()).answers
    assert found is not None
    return found


def test_drain_and_undrain(server):
    """A drained server refuses new work with Retry-After and is not ready; undrained it serves again."""
    drained = server.admin("POST", "/admin/drain", json={"timeout_s": 60})
    assert drained.json() == {"draining": True, "inflight": 0}
    refused = server.complete(max_tokens=1)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "draining"
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["connection"] == "close"
    assert server.probe("/readyz").json()["reason"] == "draining"
    assert call("GET", f"{server.url}/health").status_code == 503
    assert server.probe("/livez").status_code == 200
    assert 'kvasir:draining{engine="0",model_name="tiny"} 1.0' in call("GET", f"{server.url}/metrics").text
    assert server.admin("POST", "/admin/undrain").json()["draining"] is False
    assert server.complete(max_tokens=1).status_code == 200
    assert server.probe("/readyz").status_code == 200


def test_the_token_is_asked_for_before_the_body_is_read(server):
    """Without it, nobody can make the operator port take a large body; with it, the body is bounded too."""
    with socket.create_connection(("127.0.0.1", server.admin_port)) as client:
        client.sendall(b"POST /admin/warmup HTTP/1.1\r\nHost: x\r\nContent-Length: 900000000\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 401"
    with socket.create_connection(("127.0.0.1", server.admin_port)) as client:
        head = f"POST /admin/warmup HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN_TOKEN}\r\n"
        client.sendall(f"{head}Content-Length: 900000000\r\n\r\n".encode())
        assert client.recv(12) == b"HTTP/1.1 413"


def test_admin_requests_bear_an_id_and_are_logged(server):
    """The operator's X-Request-Id comes back and is in the log."""
    reply = call(
        "POST",
        f"{server.admin_url}/admin/undrain",
        headers={"Authorization": f"Bearer {ADMIN_TOKEN}", "X-Request-Id": "plan-17"},
    )
    assert reply.headers["x-request-id"] == "plan-17"
    wait_until(lambda: '"request_id": "plan-17"' in server.log)


def test_warmup(server):
    """Prompts as text or token ids are computed once; bad ones are told by their position, and stop nothing."""
    prompts = [{"token_ids": list(range(40))}, {"text": "def foo("}, {"token_ids": [VOCAB_SIZE]}]
    prompts += [{"text": "x", "adapter": "unknown"}, {"token_ids": [5] * 2048}, {"text": "y", "cache_salt": "refuse"}]
    state = WarmupState.model_validate(server.admin("POST", "/admin/warmup", json={"prompts": prompts}).json())
    assert (state.ended, state.prompts) == (WarmupEnd.DONE, 2)
    assert state.computed_tokens > 40
    assert state.cached_tokens == 0
    assert {position: text.split()[:3] for position, text in state.refused.items()} == {
        2: ["token", "ids", "must"],
        3: ["adapter", "'unknown'", "is"],
        4: ["it", "must", "be"],
        5: ["the", "core", "refuses"],
    }
    talk = {"messages": [{"role": "system", "content": "Answer briefly."}]}
    bad = {"messages": [{"content": "nobody says this"}]}
    talked = server.admin("POST", "/admin/warmup", json={"prompts": [talk, bad]}).json()
    assert (talked["prompts"], list(talked["refused"])) == (1, ["1"])
    again = server.admin("POST", "/admin/warmup", json={"prompts": prompts[:2]}).json()
    assert (again["computed_tokens"], again["cached_tokens"]) == (0, state.computed_tokens)


def test_warmup_does_not_count_as_a_users_request(server):
    """Neither the latency of first tokens nor the number of finished requests hears of it."""

    def counts():
        lines = call("GET", f"{server.url}/metrics").text.splitlines()
        names = ("vllm:time_to_first_token_seconds_count", "vllm:request_success_total")
        return [line for line in lines if line.startswith(names)]

    before = counts()
    assert server.admin("POST", "/admin/warmup", json={"prompts": [{"text": "warm"}]}).json()["prompts"] == 1
    assert counts() == before


def test_warmup_budgets(server):
    """The prompt that exceeds the token budget is computed up to it; time ends a warmup in the middle of a prompt."""
    body = {"prompts": [{"token_ids": [9] * 30}, {"token_ids": [8] * 30}, {"token_ids": [7] * 30}], "max_tokens": 40}
    state = server.admin("POST", "/admin/warmup", json=body).json()
    assert (state["ended"], state["prompts"], state["computed_tokens"]) == ("token_budget", 2, 40)
    slow = {"prompts": [{"token_ids": [n], "cache_salt": "slow"} for n in range(100)], "timeout_s": 0.3}
    state = server.admin("POST", "/admin/warmup", json=slow).json()
    assert state["ended"] == "time_budget"
    assert 0 < state["prompts"] < 100
    wait_until(lambda: server.admin("GET", "/admin/state").json()["running"] == 0)


def prompt_tokens(server) -> float:
    lines = call("GET", f"{server.url}/metrics").text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith("vllm:prompt_tokens_total{"))


async def test_one_warmup_at_a_time_and_none_for_who_has_gone(server):
    """A second one gets 409; when the operator hangs up, the engine stops computing."""
    slow = {"prompts": [{"token_ids": [n], "cache_salt": "slow"} for n in range(1000)], "timeout_s": 60}
    before = prompt_tokens(server)
    url, headers = f"{server.admin_url}/admin/warmup", {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    async with httpx.AsyncClient(timeout=60) as client:
        first = asyncio.create_task(client.post(url, json=slow, headers=headers))
        short = {"prompts": [{"token_ids": [1]}]}
        await asyncio.to_thread(wait_until, lambda: prompt_tokens(server) > before)
        reply = await client.post(url, json=short, headers=headers)
        assert (reply.status_code, reply.json()["error"]["code"]) == (409, "warmup_running")
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await asyncio.to_thread(
            wait_until, lambda: server.admin("POST", "/admin/warmup", json=short).status_code == 200, timeout_s=40
        )
    wait_until(lambda: '"status": 499' in server.log)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompts": []}, "prompts list must have at least 1 item"),
        ({"prompts": [{}]}, "exactly one of text, token_ids and messages"),
        ({"prompts": [{"text": "x", "token_ids": [1]}]}, "exactly one of text, token_ids and messages"),
        ({"prompts": [{"token_ids": [-1]}]}, "prompts[0].token_ids[0] must be greater than or equal to 0, got -1"),
        ({"prompts": [{"text": "x"}], "max_tokens": 0}, "max_tokens must be greater than or equal to 1, got 0"),
        ({"prompts": [{"text": "x"}], "timeout_s": 0}, "timeout_s must be greater than 0, got 0"),
        ({"prompts": [{"text": "x"}], "pin_s": -1}, "pin_s must be greater than or equal to 0, got -1"),
    ],
)
def test_warmup_bounds(server, body, message):
    """Path, bound and value."""
    reply = server.admin("POST", "/admin/warmup", json=body)
    assert reply.status_code == 400
    assert message in reply.json()["error"]["message"]


def test_prefixes(server):
    """As many as asked for, with their bytes; those with a salt only if asked for."""
    prefixes = PrefixList.model_validate(server.admin("GET", "/admin/prefixes?count=2").json()).prefixes
    assert [(len(each.token_ids), each.hits, each.bytes) for each in prefixes] == [(16, 4.0, 1600), (32, 2.0, 3200)]
    salted = server.admin("GET", "/admin/prefixes?salted=true").json()["prefixes"]
    assert [each["cache_salt"] for each in salted] == ["tenant", "", "", ""]
    for query, message in (("count=0", "count must be"), ("max_tokens=9999999", "max_tokens must be")):
        reply = server.admin("GET", f"/admin/prefixes?{query}")
        assert reply.status_code == 400
        assert message in reply.json()["error"]["message"]


def test_sleep_and_wake(server):
    """Asleep it refuses work and is not ready, but lives; level and freed bytes are told; awake it serves again."""
    asleep = SleepState.model_validate(server.admin("POST", "/admin/sleep", json={"level": 2}).json())
    assert (asleep.sleep_level, asleep.freed_bytes, asleep.resident_bytes) == (2, 2000, 3000)
    refused = server.complete(max_tokens=1)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "sleeping")
    assert int(refused.headers["retry-after"]) == 30
    assert server.probe("/readyz").json()["reason"] == "asleep"
    assert server.probe("/livez").status_code == 200
    assert call("GET", f"{server.url}/health").status_code == 503
    assert server.admin("POST", "/admin/warmup", json={"prompts": [{"text": "x"}]}).status_code == 503
    assert server.admin("GET", "/admin/state").json()["sleep_level"] == 2
    assert 'sleep_state="discard_all"} 1.0' in call("GET", f"{server.url}/metrics").text
    assert server.admin("POST", "/admin/wake").json()["sleep_level"] == 0
    assert server.admin("POST", "/admin/wake").json()["sleep_level"] == 0
    assert server.complete(max_tokens=1).status_code == 200
    assert server.probe("/readyz").status_code == 200
    assert server.admin("POST", "/admin/sleep", json={"level": 3}).status_code == 400


async def test_sleep_waits_for_what_runs_and_cuts_it_then(server):
    """A stream that ends in time is whole; one that does not ends with an error event."""
    url = f"{server.url}/v1/completions"
    async with httpx.AsyncClient(timeout=60) as client:

        async def fall_asleep_beside(max_tokens: int, timeout_s: float) -> str:
            body = {"prompt": "x", "max_tokens": max_tokens, "cache_salt": "slow", "stream": True}
            stream = asyncio.create_task(client.post(url, json=body))
            await asyncio.to_thread(wait_until, lambda: server.admin("GET", "/admin/state").json()["running"] == 1)
            reply = await asyncio.to_thread(server.admin, "POST", "/admin/sleep", json={"timeout_s": timeout_s})
            assert reply.json()["sleep_level"] == 1
            assert server.admin("POST", "/admin/wake").json()["sleep_level"] == 0
            return (await stream).text

        assert '"finish_reason":"length"' in await fall_asleep_beside(20, 30)
        assert "goes to sleep" in await fall_asleep_beside(2000, 0.2)


def test_drain_bounds(server):
    """A negative deadline is refused with its path, bound and value."""
    reply = server.admin("POST", "/admin/drain", json={"timeout_s": -1})
    assert reply.status_code == 400
    assert "timeout_s must be greater than or equal to 0, got -1" in reply.json()["error"]["message"]
