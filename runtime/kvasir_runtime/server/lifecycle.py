"""How far this process has come, and how it stops: start-up phases, draining, the end.

| event                       | readiness | new work | running work                      | process  |
|-----------------------------|-----------|----------|-----------------------------------|----------|
| ready                       | on        | taken    | runs                              | stays    |
| POST /admin/drain           | off       | 503      | runs, cut at the deadline         | stays    |
| POST /admin/undrain         | on        | taken    | runs                              | stays    |
| first SIGTERM or SIGINT     | off       | 503      | runs, cut at the deadline         | ends when nothing runs |
| second SIGTERM or SIGINT    | off       | 503      | cut at once                       | ends     |
| engine ended                | off       | 500      | has got an error                  | ends with status 1 |
"""

import asyncio
import logging
import uuid
from collections.abc import Callable
from typing import Final

from kvasir_runtime.contract.admin_api import Phase, StartupState
from kvasir_runtime.contract.failures import FailureReport
from kvasir_runtime.engine.messages import StartupProgress

DRAIN_RETRY_AFTER_S: Final = 1.0
"""Another replica can take the request at once."""

LAST_EVENT_S: Final = 5.0
"""How long clients whose requests were cut at the deadline may take to read why."""

CUT_REASON: Final = "the server is shutting down and the drain deadline has passed; send the request again"

logger = logging.getLogger("kvasir.server")


class StartupClock:
    """Which phase a start-up is in and what each took. `process_started` is on the same clock as every `now`."""

    def __init__(self, process_started: float, now: float) -> None:
        self._seconds = {"process": now - process_started}
        self._process_started = process_started
        self._engine_phase = "engine"
        self._since = now
        self._progress = StartupProgress("engine", 0.0, "starting the engine's process")
        self._ready_after: float | None = None

    def advance(self, progress: StartupProgress, now: float) -> bool:
        """Note what the engine reports; returns whether a new phase began."""
        begins = progress.phase != self._engine_phase
        if begins:
            self._seconds[self._engine_phase] = self._spent(now)
            self._engine_phase, self._since = progress.phase, now
        self._progress = progress
        return begins

    def finish(self, now: float) -> float:
        """The process is ready; returns how long that took since its start."""
        self._seconds[self._engine_phase] = self._spent(now)
        self._ready_after = now - self._process_started
        self._seconds["total"] = self._ready_after
        return self._ready_after

    def state(self, now: float, *, draining: bool, failed: bool) -> StartupState:
        """The start-up as the operator port reports it."""
        if self._ready_after is not None:
            phase = Phase.FAILED if failed else Phase.DRAINING if draining else Phase.SERVING
            return StartupState(phase=phase, seconds=rounded(self._seconds), progress=1.0)
        phase = Phase.FAILED if failed else _phase_of(self._engine_phase)
        seconds = {**self._seconds, self._engine_phase: self._spent(now)}
        message = self._progress.message or self._engine_phase
        return StartupState(phase=phase, seconds=rounded(seconds), progress=self._progress.progress, message=message)

    def _spent(self, now: float) -> float:
        return self._seconds.get(self._engine_phase, 0.0) + now - self._since


class Lifecycle:
    """Draining and the end. One event loop's alone."""

    def __init__(self, cut: Callable[[str], None]) -> None:
        """`cut` ends all running requests with an error that says the given reason."""
        self.boot_id = uuid.uuid4().hex
        self.inflight = 0
        self.draining = False
        self.stopping = False
        self.failure: FailureReport | None = None
        self.ended = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._cut = cut
        self._deadline: asyncio.TimerHandle | None = None

    def enter(self) -> None:
        """A request was taken."""
        self.inflight += 1
        self._idle.clear()

    def leave(self) -> None:
        """Its answer is out."""
        self.inflight -= 1
        if self.inflight == 0:
            self._idle.set()
        self._end_when_idle()

    async def wait_idle(self, timeout_s: float) -> bool:
        """Wait until no request is in flight; False when that takes longer."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return self.inflight == 0
        return True

    def drain(self, timeout_s: float) -> None:
        """Take no more work; cut what still runs after `timeout_s`. Again: the newer deadline counts."""
        self.draining = True
        self._cancel_deadline()
        self._deadline = asyncio.get_running_loop().call_later(timeout_s, self._on_deadline)
        logger.info("draining", extra={"inflight": self.inflight, "timeout_s": timeout_s})

    def undrain(self) -> bool:
        """Take work again; False when the process is about to end and cannot."""
        if self.stopping:
            return False
        self.draining = False
        self._cancel_deadline()
        return True

    def on_signal(self, name: str, timeout_s: float) -> None:
        """The first signal drains, the second cuts."""
        if self.stopping:
            logger.warning("second signal: cutting what runs", extra={"signal": name, "inflight": self.inflight})
            self._cut("the server was told to stop at once; send the request again")
            self.ended.set()
            return
        self.stopping = True
        logger.info("stopping", extra={"signal": name})
        self.drain(timeout_s)
        self._end_when_idle()

    def fail(self, report: FailureReport) -> None:
        """The engine ended: so does this process, with the report as its reason."""
        if not self.ended.is_set():
            self.failure = report
            self.ended.set()

    def _on_deadline(self) -> None:
        self._cut(CUT_REASON)
        if self.stopping:  # a client that does not read its error event must not keep the process
            self._deadline = asyncio.get_running_loop().call_later(LAST_EVENT_S, self.ended.set)

    def _end_when_idle(self) -> None:
        if self.stopping and self.inflight == 0:
            self._cancel_deadline()
            self.ended.set()

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in seconds.items()}


def _phase_of(engine_phase: str) -> Phase:
    if engine_phase == "engine":
        return Phase.STARTING
    return Phase.WARMING if "warm" in engine_phase else Phase.LOADING
