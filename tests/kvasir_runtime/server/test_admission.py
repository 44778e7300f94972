"""Whether a request could be answered in time: the estimate by table, and what clients are told."""

import asyncio

import httpx
import pytest

from kvasir_runtime.engine.messages import EngineStats
from kvasir_runtime.sampling_params import SamplingParams
from kvasir_runtime.server.admission import Deadlines, Load, refusal
from kvasir_runtime.server.rates import Rates
from tests.kvasir_runtime.server.harness import wait_until

NOTHING = Load(0, 0, free_seats=8, prompt_speed=None, token_s=None, finished_per_s=None)
BUSY = Load(3, 6000, free_seats=8, prompt_speed=2000.0, token_s=0.02, finished_per_s=4.0)
FULL = Load(7, 100, free_seats=0, prompt_speed=2000.0, token_s=0.02, finished_per_s=4.0)

DECISIONS = [
    # load, bound on the queue, bound on the answer, prompt, output, code and seconds after which to try again
    (NOTHING, 0.1, 0.1, 100_000, 1000, None, 0.0),  # nothing was measured yet
    (BUSY, None, None, 1000, 51, None, 0.0),
    (BUSY, 3.0, None, 1000, 51, None, 0.0),  # 6,000 tokens at 2,000 a second
    (BUSY, 2.0, None, 1000, 51, "queue_timeout", 1.0),
    (BUSY, None, 4.6, 1000, 51, None, 0.0),  # and 0.5 s for the prompt, 50 x 20 ms
    (BUSY, None, 4.0, 1000, 51, "deadline_unreachable", 3.0),
    (BUSY, None, 4.0, 1000, 1, None, 0.0),  # it may end after its first token
    (FULL, 2.0, None, 10, 1, None, 0.0),  # eight ends at four a second
    (FULL, 1.5, None, 10, 1, "queue_timeout", 0.5),
]


@pytest.mark.parametrize(("load", "queue", "answer", "prompt", "output", "code", "retry"), DECISIONS)
def test_decisions(load, queue, answer, prompt, output, code, retry):
    """Only what cannot be in time by what was measured is refused."""
    refused = refusal(load, Deadlines(queue, answer), prompt, output)
    assert (refused.code if refused else None) == code
    assert (refused.retry_after_s if refused else 0.0) == pytest.approx(retry)


def test_the_message_holds_the_numbers():
    """What it would take, what of it is waiting, and the bound."""
    refused = refusal(BUSY, Deadlines(answer=4.0), 1000, 51)
    assert refused is not None
    assert refused.message == "the answer would take at least 4.5 s (3.0 s of them in the queue), timeout_s is 4"


@pytest.mark.parametrize(
    ("params", "least"),
    [
        ({"max_tokens": 100}, 1),
        ({"max_tokens": 100, "min_tokens": 7}, 7),
        ({"max_tokens": 100, "ignore_eos": True}, 100),
        ({"max_tokens": 100, "ignore_eos": True, "stop": ("x",)}, 1),
        ({"ignore_eos": True}, 1),
    ],
)
def test_what_a_request_must_produce(params, least):
    """An answer may end early unless the request says otherwise."""
    assert SamplingParams(**params).least_output_tokens == least


def test_speeds_are_those_of_the_time_computed():
    """An idle engine is not a slow one: prompts count by the time spent on them. After a minute nothing is known."""
    rates = Rates()
    rates.sample(EngineStats(), 0.0)
    assert (rates.prompt_speed(0.0), rates.token_s(0.0), rates.finished_per_s(4, 0.0)) == (None, None, None)
    rates.sample(EngineStats(prompt_tokens=1000, prompt_seconds=0.5), 9.0)
    assert rates.prompt_speed(9.0) == 2000
    rates.sample(EngineStats(prompt_tokens=1000, prompt_seconds=0.5), 30.0)
    assert (rates.prompt_speed(69.0), rates.prompt_speed(70.0)) == (2000, None)
    rates.next_tokens(0.05, 10.0)
    rates.finished(10)
    assert rates.finished_per_s(4, 10.0) == 8
    for _ in range(300):
        rates.next_tokens(0.1, 20.0)
    assert rates.token_s(20.0) == pytest.approx(0.1, rel=0.01)
    assert (rates.token_s(81.0), rates.finished_per_s(4, 81.0)) == (None, None)
    rates.next_tokens(0.02, 90.0)
    assert rates.token_s(90.0) == 0.02


SLOW = {"prompt": "def foo(", "max_tokens": 2000, "cache_salt": "slow"}


def state(server):
    return server.admin("GET", "/admin/state").json()


async def test_deadlines_over_http(start_server):
    """What waited for too long gets 503, then what would wait for too long gets 429; and so for whole answers."""
    server = start_server("--max-num-seqs", "1", "--queue-timeout", "1s").wait_ready()
    url = f"{server.url}/v1/completions"
    async with httpx.AsyncClient(timeout=60) as client:
        long = await occupy(client, server)
        waited = await client.post(url, json=SLOW)  # taken, as no answer has ended from which the wait could be told
        assert (waited.status_code, waited.json()["error"]["code"]) == (503, "queue_timeout")
        long.cancel()
        await asyncio.to_thread(wait_until, lambda: state(server)["running"] == 0)
        short = await client.post(url, json={**SLOW, "max_tokens": 40})
        assert short.status_code == 200
        cut = await client.post(url, json={**SLOW, "timeout_s": 0.5})
        assert (cut.status_code, cut.json()["error"]["code"]) == (503, "deadline_exceeded")
        assert int(cut.headers["retry-after"]) >= 1
        await asyncio.to_thread(wait_until, lambda: state(server)["running"] == 0)
        early = await client.post(url, json={**SLOW, "max_tokens": 1000, "ignore_eos": True, "timeout_s": 2})
        assert (early.status_code, early.json()["error"]["code"]) == (429, "deadline_unreachable")
        assert early.json()["error"]["param"] == "timeout_s"
        assert int(early.headers["retry-after"]) >= 1
        long = await occupy(client, server)
        refused = await client.post(url, json=SLOW)  # answers of 40 tokens at 50 ms, or slower, end every 2 s
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_timeout")
        long.cancel()


async def occupy(client, server):
    """Have the only seat taken for long."""
    task = asyncio.create_task(client.post(f"{server.url}/v1/completions", json=SLOW))
    await asyncio.to_thread(wait_until, lambda: state(server)["running"] == 1)
    return task
