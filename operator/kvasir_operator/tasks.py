"""Tasks that run beside each other and end together."""

import asyncio
from collections.abc import Awaitable


async def first_of(*works: Awaitable[object]) -> None:
    """Run all until the first ends, then cancel the others; raises what the first raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def cancel(task: "asyncio.Future[None]") -> None:
    """End a task and wait for it; how it ends is of no interest, since its end is what was asked for."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
