"""Requests and answers on their way through, over real sockets."""

import asyncio
import json
import logging

import pytest

from tests.kvasir_router.backends import error_answer, eventually

STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def script(*parts: bytes, close: bool = False):
    """Answers with these bytes, each as it is."""

    async def answer(reader, writer, seen):
        for part in parts:
            writer.write(part)
            await writer.drain()
        if close:
            writer.close()

    return answer


async def test_a_request_passes_with_its_headers_and_body(start, replicas):
    """Body and headers reach the replica, those of the connection do not; the id comes back."""
    replica, router = await replicas(), await start()
    router.use(replica.endpoint())
    headers = {
        "X-Request-Id": "abc-1",
        "X-Custom": "kept",
        "Connection": "x-hop",
        "X-Hop": "1",
        "Authorization": "Bearer k",
    }
    reply = await router.complete("hello", headers=headers)
    assert (reply.status_code, reply.json(), reply.headers["x-request-id"]) == (200, {}, "abc-1")
    seen = replica.seen[0]
    assert seen.line == "POST /v1/completions HTTP/1.1"
    assert json.loads(seen.body) == {"prompt": "hello"}
    assert (seen.headers["x-request-id"], seen.headers["x-custom"]) == ("abc-1", "kept")
    assert (seen.headers["authorization"], seen.headers["x-forwarded-for"]) == ("Bearer k", "127.0.0.1")
    assert "x-hop" not in seen.headers


async def test_a_query_and_an_escaped_path_pass_unchanged(start, replicas):
    replica, router = await replicas(), await start()
    router.use(replica.endpoint())
    await router.client.get(f"{router.url}/v1/models/a%2Fb?x=1&y=%20")
    assert replica.seen[0].line == "GET /v1/models/a%2Fb?x=1&y=%20 HTTP/1.1"


async def test_a_stream_passes_byte_for_byte_as_it_comes(start, replicas):
    """Each part arrives before the next is sent, and whatever bytes it has."""
    parts = [b'data: {"x": "\xf0\x9f\x98\x80"}\n\n', b"data: \x00\xff\r\n\n", b"data: [DONE]\n\n"]
    told = asyncio.Queue[None]()

    async def slowly(reader, writer, seen):
        writer.write(STREAM)
        for part in parts:
            writer.write(chunk(part))
            await writer.drain()
            await told.get()
        writer.write(b"0\r\n\r\n")

    replica, router = await replicas(script=slowly), await start()
    router.use(replica.endpoint())
    got = []
    async with router.client.stream("POST", f"{router.url}/v1/completions", json={"stream": True}) as reply:
        async for data in reply.aiter_raw():
            got.append(data)
            told.put_nowait(None)
    assert got == parts


async def test_connections_to_replicas_are_kept(start, replicas):
    replica, router = await replicas(), await start()
    router.use(replica.endpoint())
    for _ in range(5):
        assert (await router.complete()).status_code == 200
    assert (len(replica.seen), replica.connections) == (5, 1)


async def test_a_kept_connection_that_was_closed_costs_nothing(start, replicas):
    """The replica closes after each answer without saying so: the request is sent again on a new connection."""
    replica = await replicas(script=script(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", close=True))
    router = await start()
    router.use(replica.endpoint())
    for _ in range(3):
        assert (await router.complete()).status_code == 200
    assert router.router.fleet.endpoints["a"].health.failures == 0


@pytest.mark.parametrize("method", ["HEAD", "GET", "DELETE", "OPTIONS"])
async def test_methods_without_a_body(start, replicas, method):
    replica = await replicas(script=script(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"))
    router = await start()
    router.use(replica.endpoint())
    reply = await router.client.request(method, f"{router.url}/v1/models")
    assert (reply.status_code, reply.content) == (200, b"")


async def test_an_answer_that_ends_with_its_connection(start, replicas):
    """No length, no chunks: HTTP/1.0's way."""
    replica = await replicas(script=script(b"HTTP/1.1 200 OK\r\n\r\n", b"all of it", close=True))
    router = await start()
    router.use(replica.endpoint())
    assert (await router.complete()).content == b"all of it"


async def test_an_interim_answer_is_not_the_answer(start, replicas):
    replica = await replicas(
        script=script(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
    )
    router = await start()
    router.use(replica.endpoint())
    assert (await router.complete()).content == b"ok"


async def test_a_large_answer_to_a_slow_reader_does_not_pile_up(start, replicas):
    """The replica is told to wait: what lies in the router is bounded."""
    sent = 0

    async def much(reader, writer, seen):
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 67108864\r\n\r\n")
        for _ in range(1024):
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536

    replica, router = await replicas(script=much), await start()
    router.use(replica.endpoint())
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port, limit=2**16)
    writer.write(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    last = -1
    while sent != last:  # until nothing moves any more
        last = sent
        await asyncio.sleep(0.2)
    assert sent < 32 * 2**20
    got = 0
    while got < 67108864:
        got += len(await reader.read(2**20))
    writer.close()


async def test_who_goes_is_told_to_the_replica(start, replicas):
    """A client closes its connection in the middle of a stream: the replica's connection is closed."""

    async def endless(reader, writer, seen):
        writer.write(STREAM)
        while True:
            writer.write(chunk(b"data: 1\n\n"))
            await writer.drain()
            await asyncio.sleep(0.01)

    replica, router = await replicas(script=endless), await start()
    router.use(replica.endpoint())
    async with router.client.stream("POST", f"{router.url}/v1/completions", json={"stream": True}) as reply:
        await anext(reply.aiter_raw())
    await asyncio.wait_for(replica.gone.wait(), 30)
    await eventually(lambda: router.router.inflight == 0)
    assert router.router.fleet.endpoints["a"].inflight == 0
    assert router.router.fleet.endpoints["a"].health.failures == 0


async def test_who_goes_before_the_answer_is_told_as_well(start, replicas):
    async def never(reader, writer, seen):
        await reader.read()

    replica, router = await replicas(script=never), await start()
    router.use(replica.endpoint())
    asking = asyncio.create_task(router.complete())
    await eventually(lambda: bool(replica.seen))
    asking.cancel()
    await asyncio.wait_for(replica.gone.wait(), 30)
    await eventually(lambda: router.router.inflight == 0)


async def test_a_body_beyond_the_limit(start, replicas):
    """Announced or not, it is refused, and the replica never hears of it."""
    replica, router = await replicas(), await start(max_body_bytes=1000)
    router.use(replica.endpoint())
    announced = await router.client.post(f"{router.url}/v1/completions", content=b"x" * 1001)
    assert (announced.status_code, announced.json()["error"]["code"]) == (413, "body_too_large")

    async def parts():
        for _ in range(20):
            yield b"x" * 100

    chunked = await router.client.post(f"{router.url}/v1/completions", content=parts())
    assert chunked.status_code == 413
    assert replica.seen == []
    assert router.router.buffered == 0


async def test_api_keys_and_their_limit(start, replicas):
    """The runtime's own gate: 401 without a key, 429 beyond a key's streams; probes need none."""
    release = asyncio.Event()

    async def when_released(reader, writer, seen):
        await release.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    replica = await replicas(script=when_released)
    router = await start(api_key=["one", "two"], max_streams_per_key=1)
    router.use(replica.endpoint())
    assert (await router.complete()).status_code == 401
    assert (await router.client.get(f"{router.url}/health")).status_code == 200
    first = asyncio.create_task(router.complete(headers={"Authorization": "Bearer one"}))
    await eventually(lambda: bool(replica.seen))
    beyond = await router.complete(headers={"Authorization": "Bearer one"})
    assert (beyond.status_code, beyond.json()["error"]["code"]) == (429, "too_many_streams")
    release.set()
    assert (await router.complete(headers={"Authorization": "Bearer two"})).status_code == 200
    assert (await first).status_code == 200


async def test_requests_beyond_the_routers_limit(start, replicas):
    release = asyncio.Event()

    async def when_released(reader, writer, seen):
        await release.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    replica, router = await replicas(script=when_released), await start(max_inflight_requests=1)
    router.use(replica.endpoint())
    first = asyncio.create_task(router.complete())
    await eventually(lambda: bool(replica.seen))
    assert (await router.complete()).json()["error"]["code"] == "router_full"
    release.set()
    assert (await first).status_code == 200


async def test_the_log_says_where_a_request_went_and_why(start, replicas, caplog):
    caplog.set_level(logging.INFO, "kvasir.access")
    replica, router = await replicas(), await start()
    router.use(replica.endpoint())
    await router.complete("x" * 100, headers={"X-Request-Id": "id-7"})
    (line,) = [record for record in caplog.records if record.name == "kvasir.access"]
    fields = vars(line)
    assert line.getMessage() == "POST /v1/completions"
    assert (fields["request_id"], fields["replica"], fields["why"], fields["status"]) == ("id-7", "a", "hash", 200)
    assert (fields["attempts"], fields["bytes"]) == (1, 2)


async def test_health_and_metrics(start, replicas):
    """Not ready before it knows anything; the series tell what was done."""
    replica, router = await replicas(), await start()
    assert (await router.client.get(f"{router.url}/ready")).status_code == 503
    router.use(replica.endpoint())
    assert (await router.client.get(f"{router.url}/ready")).status_code == 200
    await router.complete()
    text = (await router.client.get(f"{router.url}/metrics")).text
    assert 'kvasir_router_requests_total{code="200"} 1.0' in text
    assert 'kvasir_router_endpoint_usable{endpoint="a"} 1.0' in text


async def test_whatever_is_no_http_is_the_replicas_fault(start, replicas):
    replica = await replicas(script=script(b"SSH-2.0-OpenSSH\r\n", close=True))
    router = await start()
    router.use(replica.endpoint(), max_held_requests=0)
    reply = await router.complete()
    assert (reply.status_code, reply.json()["error"]["code"]) in {(502, "replica_failed"), (429, "no_replica_ready")}


async def test_an_error_of_a_replica_passes(start, replicas):
    """400 and the like are the request's own."""
    replica = await replicas(script=script(error_answer(400, "invalid_value")))
    router = await start()
    router.use(replica.endpoint())
    reply = await router.complete()
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_value")


async def test_the_openai_client_streams_through_it(start, replicas):
    openai = pytest.importorskip("openai")
    event = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    event["choices"] = [{"index": 0, "delta": {"content": "hi"}, "finish_reason": None}]
    body = chunk(b"data: " + json.dumps(event).encode() + b"\n\n") + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    replica, router = await replicas(script=script(STREAM + body)), await start()
    router.use(replica.endpoint())
    client = openai.AsyncOpenAI(base_url=f"{router.url}/v1", api_key="x", max_retries=0)
    async with client:
        stream = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "x"}], stream=True
        )
        assert [each.choices[0].delta.content async for each in stream] == ["hi"]


async def test_pipelined_and_broken_requests(start, replicas):
    """What is no HTTP is refused, and harms nobody else."""
    replica, router = await replicas(), await start()
    router.use(replica.endpoint())
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    writer.write(b"NONSENSE\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 400")
    writer.close()
    two = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n" * 2
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    writer.write(two)
    for _ in range(2):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        await reader.readexactly(2)
    writer.close()


async def test_a_smuggled_request_is_one_body(start, replicas):
    """Length and chunks at once: what follows never becomes a request of its own at a replica."""
    replica, router = await replicas(), await start()
    router.use(replica.endpoint())
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 44\r\ntransfer-encoding: chunked\r\n\r\n"
        b"0\r\n\r\nGET /admin/state HTTP/1.1\r\nhost: x\r\n\r\n"
    )
    await reader.read(100)
    writer.close()
    assert all("admin" not in seen.line for seen in replica.seen)
