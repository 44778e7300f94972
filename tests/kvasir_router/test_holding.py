"""Requests that wait for a replica."""

import asyncio

from kvasir_router.waiting_room import WaitingRoom
from tests.kvasir_router.backends import at_least, eventually
from tests.kvasir_router.test_proxy import script


async def test_a_request_waits_until_a_replica_is_there(start, replicas):
    replica, router = await replicas(), await start()
    router.use()
    asking = asyncio.create_task(router.complete())
    await eventually(lambda: len(router.router.room) == 1)
    state = router.router.state()
    assert (state.held, state.inflight, state.idle_s) == (1, 0, 0.0)
    router.use(replica.endpoint())
    assert (await asking).status_code == 200
    assert router.router.state().held == 0


async def test_before_the_first_configuration_requests_wait_too(start, replicas):
    replica, router = await replicas(), await start()
    asking = asyncio.create_task(router.complete())
    await eventually(lambda: len(router.router.room) == 1)
    router.use(replica.endpoint())
    assert (await asking).status_code == 200


async def test_beyond_the_bound_there_is_429_with_the_measured_start(start):
    """Two may wait; the third is told when a start that takes 40 s will be over."""
    router = await start()
    router.use(max_held_requests=2, hold_timeout_s=60, cold_start_s=40)
    held = [asyncio.create_task(router.complete()) for _ in range(2)]
    await eventually(lambda: len(router.router.room) == 2)
    refused = await router.complete()
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "no_replica_ready")
    assert 1 <= int(refused.headers["retry-after"]) <= 40
    for task in held:
        task.cancel()
    await asyncio.gather(*held, return_exceptions=True)
    await eventually(lambda: len(router.router.room) == 0)


async def test_who_waited_for_too_long_gets_429(start):
    router = await start()
    router.use(hold_timeout_s=0.05, cold_start_s=40)
    reply = await router.complete()
    assert (reply.status_code, "within 0.05 s" in reply.json()["error"]["message"]) == (429, True)
    assert "retry-after" in reply.headers


async def test_held_requests_go_at_the_warmed_concurrency(start, replicas):
    """A replica that is warmed for 2 never has more of them at a time, and they go in the order in which they came."""
    running, most, order = 0, 0, []
    step = asyncio.Semaphore(0)

    async def counted(reader, writer, seen):
        nonlocal running, most
        running += 1
        most = max(most, running)
        order.append(seen.headers["x-request-id"])
        await step.acquire()
        running -= 1
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    replica, router = await replicas(script=counted), await start()
    router.use()
    asking = []
    for number in range(7):
        asking.append(asyncio.create_task(router.complete(headers={"X-Request-Id": f"id-{number}"})))
        await at_least(router.router.room, number + 1)
    router.use(replica.endpoint(max_concurrency=2))
    for done in range(7):
        await at_least(order, min(7, done + 2))
        step.release()
    assert {(await each).status_code for each in asking} == {200}
    assert (most, [int(each.removeprefix("id-")) for each in order]) == (2, list(range(7)))


async def test_who_goes_while_waiting_leaves_its_place(start, replicas):
    replica, router = await replicas(), await start()
    router.use()
    first, second = asyncio.create_task(router.complete()), asyncio.create_task(router.complete())
    await eventually(lambda: len(router.router.room) == 2)
    first.cancel()
    await eventually(lambda: len(router.router.room) == 1)
    router.use(replica.endpoint())
    assert (await second).status_code == 200
    assert len(replica.seen) == 1


async def test_the_only_replica_drains_and_another_comes(start, replicas):
    """A replacement in place: requests wait, none fails."""
    old, new = await replicas("old", script(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n")), await replicas("new")
    router = await start()
    router.use(old.endpoint())
    asking = asyncio.create_task(router.complete())
    await eventually(lambda: len(router.router.room) == 1)
    router.use(old.endpoint(draining=True))
    router.use(new.endpoint())
    assert (await asking).status_code == 200


async def test_idle_time_counts_from_the_last_finished_request(start, replicas):
    replica, router = await replicas(), await start()
    router.use(replica.endpoint())
    await router.complete()
    router.router.clock = lambda: router.router._last_activity + 12.5
    assert (router.router.state().idle_s, router.router.state().finished) == (12.5, 1)
    router.router.came()
    assert router.router.state().idle_s == 0.0
    router.router.went()


async def test_a_door_opens_for_one_at_a_time():
    """The next goes when the one before is on its way."""
    open_ = False
    room = WaitingRoom(lambda: open_, lambda: 0.0)
    waiting = [asyncio.create_task(room.wait(60)) for _ in range(3)]
    await asyncio.sleep(0)
    assert len(room) == 3
    open_ = True
    room.look()
    room.look()
    assert len(room) == 2
    assert await waiting[0]
    room.look()
    assert len(room) == 1
    for each in waiting[1:]:
        each.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert len(room) == 0
