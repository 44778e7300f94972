"""So many at once, and of those that wait the one that has waited longest for its whole work, not for this turn."""

import asyncio
import heapq
import itertools
from typing import Final


class Slots:
    """A semaphore whose waiters have ranks: the least goes first, equal ones in their order.

    With a thousand new services, each of which needs four turns, first come first served brings all of them to their
    end at the same late time. By the age of the work they end one after the other, the median in half the time.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers: Final = itertools.count()

    async def acquire(self, rank: float) -> None:
        """Take a slot, as soon as one is free and nobody of a lesser rank waits."""
        if self._free > 0:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (rank, next(self._numbers), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was given a slot in the same moment
                self.release()
            raise

    def release(self) -> None:
        """Give the slot to who is next, or keep it free."""
        while self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
