"""Falling asleep and waking: no work is taken, what runs ends, then the engine gives its memory back."""

import logging
from http import HTTPStatus

from kvasir_runtime.contract.admin_api import SleepState
from kvasir_runtime.engine.async_engine import AsyncEngine
from kvasir_runtime.engine.messages import SetSleep, SleepDone
from kvasir_runtime.server.errors import ApiError, unavailable
from kvasir_runtime.server.lifecycle import LAST_EVENT_S, Lifecycle

CUT_REASON = "the server goes to sleep and the time for running requests is over; send the request again"
SLEEPING_RETRY_AFTER_S = 30.0
"""Somebody has to wake the server first."""

logger = logging.getLogger("kvasir.server")


class Sleep:
    """Of one server. `level` 0 is awake; from the moment sleep is asked for, no work is taken."""

    def __init__(self, engine: AsyncEngine, lifecycle: Lifecycle) -> None:
        self.level = 0
        self._engine = engine
        self._lifecycle = lifecycle
        self._changing = False

    def refuse_work(self) -> None:
        """Raise ApiError (503) while asleep, and on the way there and back."""
        if self.level or self._changing:
            raise unavailable(
                "the server sleeps; POST /admin/wake on the operator port wakes it", "sleeping", SLEEPING_RETRY_AFTER_S
            )

    async def fall_asleep(self, level: int, timeout_s: float) -> SleepState:
        """Let what runs finish within `timeout_s`, cut the rest, free memory. Raises ApiError, EngineGoneError."""
        self._begin()
        try:
            if not await self._lifecycle.wait_idle(timeout_s):
                self._engine.abort_all(CUT_REASON)
                await self._lifecycle.wait_idle(LAST_EVENT_S)
            self._engine.abort_all(CUT_REASON)  # what warms up is nobody's request
            return await self._change(level)
        finally:
            self._changing = False

    async def wake(self) -> SleepState:
        """Take the memory back; work is taken again when this returns. Raises ApiError, EngineGoneError."""
        if not self.level and not self._changing:
            return SleepState(sleep_level=0)
        self._begin()
        try:
            return await self._change(0)
        finally:
            self._changing = False

    def _begin(self) -> None:
        if self._changing:
            raise ApiError(HTTPStatus.CONFLICT, "the server is falling asleep or waking already", code="sleep_changing")
        self._changing = True

    async def _change(self, level: int) -> SleepState:
        done = await self._engine.call(lambda call_id: SetSleep(call_id, level))
        assert isinstance(done, SleepDone), done
        if done.error:
            raise ApiError(HTTPStatus.CONFLICT, f"cannot change the sleep level: {done.error}", code="busy")
        self.level = done.level
        state = SleepState(
            sleep_level=self.level,
            freed_bytes=done.freed_bytes,
            resident_bytes=done.resident_bytes,
            seconds=done.seconds,
        )
        logger.info("asleep" if self.level else "awake", extra=state.model_dump())
        return state
