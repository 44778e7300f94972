"""What happens when a replica does not answer as it should."""

import asyncio
import json

import pytest

from tests.kvasir_router.backends import WHOLE, at_least, error_answer, eventually
from tests.kvasir_router.test_proxy import STREAM, chunk, script


async def both(start, replicas, failing):
    """A router with replica `a`, which fails, and `b`, which answers; requests go to `a` first."""
    a, b = await replicas("a", failing), await replicas("b")
    router = await start()
    router.use(a.endpoint(), b.endpoint(), policy="RoundRobin")
    return a, b, router


@pytest.mark.parametrize(
    "failing",
    [
        script(close=True),
        script(error_answer(503, "draining")),
        script(error_answer(503, "loading")),
        script(error_answer(503, "request_ended")),
        script(error_answer(500, "engine_died")),
        script(error_answer(429, "queue_full")),
        script(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n"),
        script(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n", close=True),
        script(STREAM, close=True),
        script(STREAM + chunk(b'data: {"error":{"code":"engine_died"}}\n\n') + b"0\r\n\r\n"),
    ],
    ids=["closed", "draining", "loading", "ended", "died", "full", "502", "no-body", "no-event", "error-event"],
)
async def test_what_has_not_begun_is_sent_to_another(start, replicas, failing):
    a, b, router = await both(start, replicas, failing)
    reply = await router.complete()
    assert (reply.status_code, reply.content) == (200, b"{}")
    assert (len(a.seen), len(b.seen)) == (1, 1)
    assert b.seen[0].headers["x-request-id"] == a.seen[0].headers["x-request-id"]


async def test_a_replica_that_is_gone(start, replicas):
    a, b, router = await both(start, replicas, script(WHOLE))
    await a.stop()
    for _ in range(8):
        assert (await router.complete()).status_code == 200
    assert len(b.seen) == 8


@pytest.mark.parametrize("code", ["queue_timeout", "deadline_exceeded", "overloaded"])
async def test_a_503_that_another_would_give_as_well_passes(start, replicas, code):
    _, b, router = await both(start, replicas, script(error_answer(503, code)))
    assert (await router.complete()).json()["error"]["code"] == code
    assert b.seen == []


async def test_what_changes_something_is_sent_once(start, replicas):
    a, b, router = await both(start, replicas, script(close=True))
    reply = await router.client.post(f"{router.url}/v1/load_lora_adapter", json={})
    assert (reply.status_code, reply.json()["error"]["code"]) == (502, "replica_failed")
    assert (len(a.seen), len(b.seen)) == (1, 0)


async def test_a_stream_that_has_begun_ends_with_an_error(start, replicas):
    """An event with the error, and the end: never a second beginning."""
    first = b"data: 1\n\n"
    a, b, router = await both(start, replicas, script(STREAM + chunk(first), close=True))
    reply = await router.complete(stream=True)
    assert reply.content.startswith(first)
    error, done = reply.content.removeprefix(first).strip().split(b"\n\n")
    assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "replica_failed"
    assert (done, len(a.seen), len(b.seen)) == (b"data: [DONE]", 1, 0)


async def test_an_answer_that_breaks_off_is_not_completed(start, replicas):
    """The client sees that bytes are missing."""
    _, b, router = await both(
        start, replicas, script(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf", close=True)
    )
    with pytest.raises(Exception, match="closed"):
        await router.complete()
    assert b.seen == []


async def test_retries_end_with_the_budget(start, replicas):
    """All replicas break off: each request is sent at most three times, and soon no second time."""
    router = await start()
    made = [await replicas(name, script(close=True)) for name in "abcde"]
    router.use(*(each.endpoint() for each in made), policy="RoundRobin")
    router.router.budget.left = 3.0
    for endpoint in router.router.fleet.endpoints.values():
        endpoint.health.failures = -1000  # the circuits are another test's
    for _ in range(4):
        assert (await router.complete()).status_code == 502
    assert sum(len(each.seen) for each in made) == 4 + 3


async def test_an_answer_that_stays_away(start, replicas):
    async def never(reader, writer, seen):
        await reader.read()

    a, b, router = await both(start, replicas, never)
    asking = asyncio.create_task(router.complete())
    await eventually(lambda: bool(a.seen))
    router.router.pool._silence_s = 0.0
    await asyncio.sleep(0.01)
    router.router.pool.sweep()
    assert (await asking).status_code == 200
    assert len(b.seen) == 1


async def test_no_error_while_replicas_come_and_go(start, replicas):
    """Requests all the time; replicas drain, answer 503, close their port, and others come. None of them fails."""
    router = await start()
    statuses: list[int] = []
    current = [await replicas("r0"), await replicas("r1")]
    router.use(*(each.endpoint() for each in current))
    ending = asyncio.Event()

    async def client(number: int) -> None:
        while not ending.is_set():
            statuses.append((await router.complete(f"client {number} " + "x" * 100)).status_code)

    clients = [asyncio.create_task(client(number)) for number in range(8)]
    for round_ in range(2, 8):
        await at_least(statuses, len(statuses) + 40)
        leaving = current.pop(0)
        leaving.script = script(error_answer(503, "draining"))  # it drains before the router is told
        await at_least(statuses, len(statuses) + 10)
        await leaving.stop()
        current.append(await replicas(f"r{round_}"))
        router.use(*(each.endpoint() for each in current))
    ending.set()
    await asyncio.gather(*clients)
    assert set(statuses) == {200}
