"""The front end's view of the engine: requests go in, their outputs come back to the task that waits for them.

One event loop's alone. Outputs that a slow reader has not taken stay in its stream, at most `max_tokens` of them, so
that no client can slow another.
"""

import asyncio
import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import zmq
import zmq.asyncio

from kvasir_runtime.contract.failures import Cause, FailureReport
from kvasir_runtime.engine.heartbeat import HeartbeatMonitor
from kvasir_runtime.engine.launcher import EngineProcess
from kvasir_runtime.engine.messages import (
    AbortRequests,
    AbortSequences,
    AdapterLoaded,
    AdapterStates,
    Answer,
    CacheReset,
    CacheSaved,
    Call,
    EngineFailed,
    EngineOutput,
    EngineReady,
    EngineRequest,
    EngineStats,
    FromEngine,
    FromFrontEnd,
    Heartbeat,
    LoadAdapter,
    PrefixesListed,
    SleepDone,
    StartupProgress,
    StepOutputs,
    UnloadAdapter,
)
from kvasir_runtime.engine.transport import decode

LAST_WORDS_S: Final = 0.5
"""How long after an engine's end its last message may still be on its way."""

logger = logging.getLogger("kvasir.engine")


class EngineGoneError(Exception):
    """The engine ended or was given up on; `report` says why. Every stream raises it, then and later."""

    def __init__(self, report: FailureReport) -> None:
        super().__init__(report.message)
        self.report = report


class RequestEndedError(Exception):
    """The front end ended this request before the engine finished it; the argument says why, `code` to programs."""

    def __init__(self, reason: str, code: str = "request_ended") -> None:
        super().__init__(reason)
        self.code = code


class Observer(Protocol):
    """Hears what happens to requests, for metrics. Seconds throughout."""

    def first_token(self, seconds: float) -> None: ...
    def next_tokens(self, seconds: float) -> None: ...


@dataclass
class RequestTimes:
    """When what happened to a request, on the monotonic clock; None: not yet."""

    arrived: float
    scheduled: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    background: bool = False
    """Of no user: no metric hears of it."""


@dataclass(eq=False)
class OutputStream:
    """The outputs of requests that one client waits for, in order. Read by one task only."""

    times: dict[str, RequestTimes]
    _outputs: list[EngineOutput] = field(default_factory=list)
    _error: Exception | None = None
    _waiter: asyncio.Future[None] | None = None

    async def next(self) -> list[EngineOutput]:
        """All outputs since the last call, at least one; raises EngineGoneError or RequestEndedError."""
        await self.wait()
        outputs, self._outputs = self._outputs, []
        return outputs

    async def wait(self) -> None:
        """Return when `next` has something; raises what `next` would. May be cancelled without loss."""
        while not self._outputs:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    @property
    def pending(self) -> Sequence[EngineOutput]:
        """What the next call of `next` returns, at least."""
        return self._outputs

    def put(self, output: EngineOutput) -> None:
        self._outputs.append(output)
        self._wake()

    def fail(self, error: Exception) -> None:
        """End the stream; what it has already received can still be read."""
        self._error = self._error or error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class AsyncEngine:
    """Talks to one engine process. `run` must be running for anything to arrive."""

    def __init__(self, process: EngineProcess, observer: Observer | None = None) -> None:
        """Take over a started engine within a running event loop."""
        self._process = process
        self._link = process.link
        self._observer = observer
        self._outputs = zmq.asyncio.Socket.from_socket(process.link.outputs)
        self._streams: dict[str, OutputStream] = {}
        self._unfinished: dict[str, int] = {}
        self._cut: set[tuple[str, int]] = set()
        self._waiting: dict[str, tuple[int, int]] = {}  # prompt tokens and priority
        self._calls: dict[int, asyncio.Future[Answer]] = {}
        self._adapter_of: dict[str, tuple[str, str]] = {}
        self._loads: dict[str, list[asyncio.Future[AdapterLoaded]]] = {}
        self._on_adapters: Callable[[AdapterLoaded | AdapterStates], None] = lambda _: None
        self._call_ids = itertools.count()
        self._addresses_forgotten = False
        self._on_progress: Callable[[StartupProgress], None] = lambda _: None
        self.heartbeat = HeartbeatMonitor()
        self.stats = EngineStats()
        self.ready: asyncio.Future[EngineReady] = asyncio.get_running_loop().create_future()
        self.failure: FailureReport | None = None

    @property
    def inflight(self) -> int:
        """Requests that have not finished, waiting ones included."""
        return len(self._streams)

    @property
    def waiting(self) -> int:
        """Requests that the scheduler has not taken up yet."""
        return len(self._waiting)

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens of the requests that wait."""
        return sum(tokens for tokens, _ in self._waiting.values())

    def waiting_before(self, priority: int | None) -> tuple[int, int]:
        """How many requests, and prompt tokens, wait and come before a new one of `priority`; None: all do."""
        before = [tokens for tokens, other in self._waiting.values() if priority is None or other <= priority]
        return len(before), sum(before)

    def is_waiting(self, stream: "OutputStream") -> bool:
        """Whether one of the stream's requests has not begun."""
        return any(request_id in self._waiting for request_id in stream.times)

    def on_progress(self, callback: Callable[[StartupProgress], None]) -> None:
        self._on_progress = callback

    def submit(self, requests: Sequence[EngineRequest]) -> OutputStream:
        """Hand requests to the engine; raises EngineGoneError when there is none. Their ids must be new."""
        if self.failure is not None:
            raise EngineGoneError(self.failure)
        stream = OutputStream(
            {
                request.request_id: RequestTimes(request.arrival_time, background=request.background)
                for request in requests
            }
        )
        for request in requests:
            self._streams[request.request_id] = stream
            self._unfinished[request.request_id] = request.sampling.n
            if request.adapter_digest:
                self._adapter_of[request.request_id] = (request.adapter, request.adapter_digest)
            if not request.background:
                self._waiting[request.request_id] = (len(request.prompt_token_ids), request.priority)
            self._send(request)
        return stream

    async def call(self, make_call: Callable[[int], Call]) -> Answer:
        """Ask the engine something; `make_call` takes the call's id. Raises EngineGoneError when it ends meanwhile."""
        if self.failure is not None:
            raise EngineGoneError(self.failure)
        call_id = next(self._call_ids)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._calls[call_id] = answer
        self._send(make_call(call_id))
        try:
            return await answer
        finally:
            del self._calls[call_id]

    def on_adapters(self, callback: Callable[[AdapterLoaded | AdapterStates], None]) -> None:
        """Hear what the engine says of its adapters."""
        self._on_adapters = callback

    async def load_adapter(self, message: LoadAdapter) -> AdapterLoaded:
        """Have an adapter read; returns what became of it. Raises EngineGoneError when the engine ends meanwhile."""
        if self.failure is not None:
            raise EngineGoneError(self.failure)
        answer: asyncio.Future[AdapterLoaded] = asyncio.get_running_loop().create_future()
        self._loads.setdefault(message.digest, []).append(answer)
        self._send(message)
        return await answer

    def pin_adapter(self, message: LoadAdapter) -> None:
        """Pin or unpin an adapter that was loaded."""
        self._send(message)

    def unload_adapter(self, digest: str) -> None:
        """Let an adapter go once the requests that were submitted before this are done."""
        self._send(UnloadAdapter(digest))

    def adapter_refs(self) -> Counter[str]:
        """How many requests in flight each adapter's digest has."""
        return Counter(digest for _, digest in self._adapter_of.values())

    def adapters_in_use(self) -> tuple[set[str], set[str]]:
        """Names of adapters with requests that run, and with requests that wait."""
        waiting = {name for request_id, (name, _) in self._adapter_of.items() if request_id in self._waiting}
        running = {name for request_id, (name, _) in self._adapter_of.items() if request_id not in self._waiting}
        return running, waiting

    def abort(self, stream: OutputStream, reason: str = "aborted", code: str = "request_ended") -> None:
        """End a stream's requests wherever they are; it raises RequestEndedError. Harmless when they have finished."""
        unfinished = [request_id for request_id in stream.times if self._forget(request_id) is not None]
        if unfinished:
            stream.fail(RequestEndedError(reason, code))
            self._send(AbortRequests(unfinished))

    def abort_sequence(self, request_id: str, index: int) -> None:
        """End one continuation that needs no more tokens; nothing more of it is delivered, its siblings go on."""
        if self._unfinished.get(request_id, 0) > 1 and (request_id, index) not in self._cut:
            self._cut.add((request_id, index))
            self._unfinished[request_id] -= 1
            self._send(AbortSequences([(request_id, index)]))

    def abort_all(self, reason: str) -> None:
        for stream in {id(stream): stream for stream in self._streams.values()}.values():
            self.abort(stream, reason)

    def fail(self, report: FailureReport) -> None:
        """Give the engine up: every stream and every later request raises EngineGoneError. The first reason stays."""
        if self.failure is not None:
            return
        self.failure = report
        error = EngineGoneError(report)
        for request_id in list(self._streams):
            stream = self._forget(request_id)
            if stream is not None:
                stream.fail(error)
        loads = itertools.chain.from_iterable(self._loads.values())
        answers: Iterable[asyncio.Future[Any]] = (*self._calls.values(), *loads)
        for answer in answers:
            if not answer.done():
                answer.set_exception(error)
        if not self.ready.done():
            self.ready.set_exception(error)
            self.ready.exception()  # retrieved: whoever waits gets it, nobody need wait

    async def run(self) -> FailureReport:
        """Receive until the engine has ended; returns why it did."""
        ended = asyncio.create_task(asyncio.to_thread(self._process.process.wait))
        receiving = asyncio.create_task(self._receive())
        try:
            await asyncio.wait({ended, receiving}, return_when=asyncio.FIRST_COMPLETED)
            if not receiving.done():
                await asyncio.wait({receiving}, timeout=LAST_WORDS_S)
            if receiving.done():
                report = receiving.result()
            else:
                report = self._process.explain_exit(ended.result(), loading=not self.ready.done())
        finally:
            receiving.cancel()
        self.fail(report)
        return report

    def close(self) -> None:
        """Stop the engine's process and free the pipes."""
        self._process.stop()
        self._outputs.close()
        self._link.close()

    def kill(self) -> None:
        """End the engine's process at once, also when it is stopped."""
        self._process.kill()

    def _send(self, message: FromFrontEnd) -> None:
        self._link.send(message)

    async def _receive(self) -> FailureReport:
        while True:
            message: FromEngine = decode(await self._outputs.recv())
            if isinstance(message, EngineFailed):
                report = FailureReport.from_json(message.report)
                return report or FailureReport(Cause.ENGINE_DIED, message.report)
            self._handle(message, time.monotonic())

    def _handle(self, message: FromEngine, now: float) -> None:
        match message:
            case StepOutputs():
                self._take_step(message, now)
            case Heartbeat():
                self.heartbeat.observe(message, now)
                self._forget_addresses()
            case StartupProgress():
                self._on_progress(message)
            case PrefixesListed() | SleepDone() | CacheSaved() | CacheReset():
                self._take_answer(message)
            case AdapterLoaded() | AdapterStates():
                self._take_adapters(message)
            case EngineReady() if not self.ready.done():
                self.heartbeat.ready(now)
                self.ready.set_result(message)

    def _take_adapters(self, message: AdapterLoaded | AdapterStates) -> None:
        waiters = self._loads.pop(message.digest, []) if isinstance(message, AdapterLoaded) else []
        for waiter in waiters:
            if not waiter.done() and isinstance(message, AdapterLoaded):
                waiter.set_result(message)
        self._on_adapters(message)

    def _take_answer(self, answer: Answer) -> None:
        waiter = self._calls.get(answer.call_id)
        if waiter is not None and not waiter.done():  # else whoever asked has gone
            waiter.set_result(answer)

    def _forget_addresses(self) -> None:
        # Once the engine is ready and its heart beats, every pipe is connected and needs its name no more: a front end
        # that is killed from here on leaves nothing behind.
        if self.ready.done() and not self._addresses_forgotten:
            self._link.forget_addresses()
            self._addresses_forgotten = True

    def _take_step(self, step: StepOutputs, now: float) -> None:
        self.heartbeat.step_finished(now)
        self.stats = step.stats
        for request_id, scheduled_at in step.scheduled_at.items():
            self._waiting.pop(request_id, None)
            if (stream := self._streams.get(request_id)) is not None:
                times = stream.times[request_id]
                times.scheduled = times.scheduled or scheduled_at
        for output in step.outputs:
            stream = self._streams.get(output.request_id)
            if stream is not None:  # else it was aborted while this was on its way
                self._deliver(stream, output, now)

    def _deliver(self, stream: OutputStream, output: EngineOutput, now: float) -> None:
        if (output.request_id, output.index) in self._cut:
            return
        if output.new_token_ids:
            self._observe(stream.times[output.request_id], now)
        stream.put(output)
        if output.finish_reason is not None:
            self._unfinished[output.request_id] -= 1
            if self._unfinished[output.request_id] == 0:
                self._forget(output.request_id)

    def _observe(self, times: RequestTimes, now: float) -> None:
        if times.background:
            return
        if times.first_token is None:
            times.first_token = now
            if self._observer is not None:
                self._observer.first_token(now - times.arrived)
        elif times.last_token is not None and self._observer is not None:
            self._observer.next_tokens(now - times.last_token)
        times.last_token = now

    def _forget(self, request_id: str) -> OutputStream | None:
        self._waiting.pop(request_id, None)
        self._unfinished.pop(request_id, None)
        self._cut = {sequence for sequence in self._cut if sequence[0] != request_id} if self._cut else self._cut
        self._adapter_of.pop(request_id, None)
        return self._streams.pop(request_id, None)
