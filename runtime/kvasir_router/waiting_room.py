"""Where requests wait while no replica is there, first come first served."""

import asyncio
import time
from collections.abc import Callable

LOOK_S = 0.1
"""How often it is looked whether a circuit has closed again; all else that opens the door is told at once."""


class WaitingRoom:
    """Lets one request go at a time, and the next when that one is on its way: no faster than replicas are warmed for.

    `has_room` says whether a replica would take one more.
    """

    def __init__(self, has_room: Callable[[], bool], clock: Callable[[], float] = time.monotonic) -> None:
        self._has_room = has_room
        self._clock = clock
        self._held: dict[asyncio.Future[None], float] = {}
        self._handing = False
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._held)

    def longest_s(self) -> float:
        """Seconds that the first has waited; 0 when nobody waits."""
        return self._clock() - next(iter(self._held.values())) if self._held else 0.0

    async def wait(self, timeout_s: float) -> bool:
        """Wait for one's turn; False when it does not come within `timeout_s`. `look` must follow a turn."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._held[turn] = self._clock()
        self.look()
        try:
            async with asyncio.timeout(timeout_s):
                await turn
        except TimeoutError:
            return False
        finally:
            if self._held.pop(turn, None) is None:
                self._handing = False
        return True

    def look(self) -> None:
        """Let the next go if it can. Called when anything has changed that might allow it."""
        if self._held and not self._handing and self._has_room():
            turn = next(iter(self._held))
            del self._held[turn]
            if not turn.done():
                self._handing = True
                turn.set_result(None)
        if self._held and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        self.look()
