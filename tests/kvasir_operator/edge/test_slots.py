"""Who gets the next slot."""

import asyncio

from kvasir_operator.slots import Slots


async def take(slots: Slots, rank: float, name: str, order: list[str]) -> None:
    await slots.acquire(rank)
    order.append(name)
    slots.release()


async def test_of_those_that_wait_the_least_rank_is_next() -> None:
    """And of equal ones the first that came."""
    slots, order = Slots(1), list[str]()
    await slots.acquire(0)
    tasks = [
        asyncio.create_task(take(slots, rank, name, order)) for rank, name in [(3, "c"), (1, "a"), (2, "b"), (1, "a2")]
    ]
    await asyncio.sleep(0)
    assert order == []
    slots.release()
    await asyncio.gather(*tasks)
    assert order == ["a", "a2", "b", "c"]


async def test_so_many_at_once_and_no_more() -> None:
    """A third waits for one of two."""
    slots, order = Slots(2), list[str]()
    await slots.acquire(0)
    await slots.acquire(0)
    third = asyncio.create_task(take(slots, 0, "third", order))
    await asyncio.sleep(0)
    assert order == []
    slots.release()
    await third
    assert order == ["third"]


async def test_a_waiter_that_is_cancelled_loses_no_slot() -> None:
    """Neither while it waits nor in the moment in which it is given one."""
    slots, order = Slots(1), list[str]()
    await slots.acquire(0)
    waits, given = (asyncio.create_task(slots.acquire(rank)) for rank in (2, 1))
    await asyncio.sleep(0)
    waits.cancel()
    slots.release()
    given.cancel()
    await asyncio.gather(waits, given, return_exceptions=True)
    await asyncio.wait_for(take(slots, 0, "next", order), 30)
    assert order == ["next"]
