"""The engine's own process: reads its settings, loads the model, then steps for as long as there is work.

It lives and dies with the front end: the kernel kills it when its parent ends, and a closed standard input ends it
where the kernel cannot. A thread sends a heartbeat every second whatever the model does, so that a long step and a
stopped process look different from outside.
"""

import ctypes
import gc
import importlib
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol

import msgspec

from kvasir_runtime.config import EngineConfig
from kvasir_runtime.contract.failures import Cause, FailureReport, KvasirError
from kvasir_runtime.engine.messages import (
    AbortRequests,
    AbortSequences,
    AdapterLoaded,
    Answer,
    Call,
    EngineFailed,
    EngineOutput,
    EngineReady,
    EngineRequest,
    EngineStats,
    FinishReason,
    FromEngine,
    FromFrontEnd,
    Heartbeat,
    LoadAdapter,
    StartupProgress,
    StepOutputs,
    UnloadAdapter,
)
from kvasir_runtime.engine.transport import EngineLink, Sender

HEARTBEAT_INTERVAL_S: Final = 1.0
IDLE_WAIT_S: Final = 0.5
"""How long an idle engine waits for a request before it looks around again."""

READING_WAIT_S: Final = 0.005
"""The same while an adapter is being read and nothing can run before it is there."""

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15

logger = logging.getLogger("kvasir.engine")


class Core(Protocol):
    """What drives the model: the methods of `engine_core.EngineCore` that this process calls."""

    ready: EngineReady

    def add_request(self, request: EngineRequest) -> None: ...
    def abort_requests(self, request_ids: list[str]) -> None: ...
    def abort_sequences(self, sequences: list[tuple[str, int]]) -> None: ...
    def call(self, call: Call) -> Answer: ...
    def load_adapter(self, message: LoadAdapter) -> AdapterLoaded | None: ...
    def unload_adapter(self, digest: str) -> None: ...
    def poll(self) -> list[FromEngine]: ...
    def step(self) -> StepOutputs: ...
    def has_work(self) -> bool: ...
    def check_when_idle(self, now: float) -> None: ...
    def is_waiting(self) -> bool: ...
    def stats(self) -> EngineStats: ...


@dataclass(frozen=True)
class EngineSpec:
    """All that the front end tells a new engine process, over its standard input."""

    config: EngineConfig
    socket_folder: Path
    log_level: str = "info"
    log_format: str = "auto"
    core: str = "kvasir_runtime.engine.engine_core:EngineCore"

    def to_bytes(self) -> bytes:
        return msgspec.json.encode(self, enc_hook=str)

    @classmethod
    def from_bytes(cls, data: bytes) -> "EngineSpec":
        return msgspec.json.decode(data, type=cls, dec_hook=lambda kind, value: kind(value))


@dataclass
class Pulse:
    """What the heartbeat thread reads of the step loop; one word each, so no lock is needed."""

    step_started: float = 0.0
    stopped: threading.Event = field(default_factory=threading.Event)

    def beat(self, now: float) -> Heartbeat:
        started = self.step_started
        return Heartbeat(now - started if started else 0.0, time.process_time())


def main() -> int:
    """Run until the front end goes away or the engine fails; returns the exit status."""
    _die_with_parent()
    settings = sys.stdin.buffer.readline()
    if not settings:  # the front end ended before it said anything
        return 1
    spec = EngineSpec.from_bytes(settings)
    from kvasir_runtime import logs  # noqa: PLC0415 - first of all, be tied to the parent

    logs.configure(spec.log_level, spec.log_format)
    threading.Thread(target=_end_with_stdin, name="parent-watch", daemon=True).start()
    link = EngineLink(spec.socket_folder)
    pulse = Pulse()
    heart = threading.Thread(target=_send_heartbeats, args=(link.sender, pulse), name="heartbeat", daemon=True)
    heart.start()
    report = _serve(spec, link, pulse)
    pulse.stopped.set()
    heart.join()
    link.send(EngineFailed(report.to_json()))
    link.close()
    return 1


def _serve(spec: EngineSpec, link: EngineLink, pulse: Pulse) -> FailureReport:
    """Load and step; returns only when something went wrong, with what it was."""
    try:
        core = _load_core(spec, link)
    except KvasirError as error:
        return error.report
    except Exception as error:
        logger.exception("the engine could not start")
        return _unexpected(Cause.INTERNAL_ERROR, "the engine could not start", error)
    gc.collect()
    gc.freeze()  # the model lives as long as the process: a collection in the midst of a step need not look at it
    link.send(core.ready)
    try:
        _loop(core, link, pulse)
    except KvasirError as error:
        return error.report
    except Exception as error:
        logger.exception("the engine failed in a step")
        return _unexpected(Cause.ENGINE_DIED, "the engine failed in a step", error)


def _load_core(spec: EngineSpec, link: EngineLink) -> Core:
    module, _, name = spec.core.partition(":")
    make: Callable[[EngineConfig, Callable[[StartupProgress], None]], Core] = getattr(
        importlib.import_module(module), name
    )
    return make(spec.config, link.send)


def _loop(core: Core, link: EngineLink, pulse: Pulse) -> NoReturn:
    link.send(StepOutputs([], core.stats()))
    while True:
        messages = link.receive(_patience(core))
        _take_in(core, link, messages)
        for answer in core.poll():
            link.send(answer)
        if not core.has_work():
            if messages:  # what was aborted no longer runs or waits
                link.send(StepOutputs([], core.stats()))
            core.check_when_idle(time.monotonic())
            continue
        pulse.step_started = time.monotonic()
        outputs = core.step()
        pulse.step_started = 0.0
        link.send(outputs)


def _patience(core: Core) -> float:
    """Seconds that the loop may wait for a message."""
    if core.is_waiting():
        return READING_WAIT_S
    return 0.0 if core.has_work() else IDLE_WAIT_S


def _take_in(core: Core, link: EngineLink, messages: Iterable[FromFrontEnd]) -> None:
    for message in messages:
        if isinstance(message, AbortRequests):
            core.abort_requests(message.request_ids)
            continue
        if isinstance(message, AbortSequences):
            core.abort_sequences(message.sequences)
            continue
        if isinstance(message, LoadAdapter | UnloadAdapter):
            _change_adapters(core, link, message)
            continue
        if not isinstance(message, EngineRequest):
            link.send(core.call(message))
            continue
        try:
            core.add_request(message)
        except ValueError as error:
            link.send(StepOutputs(_refused(message, str(error)), core.stats()))


def _change_adapters(core: Core, link: EngineLink, message: LoadAdapter | UnloadAdapter) -> None:
    if isinstance(message, UnloadAdapter):
        core.unload_adapter(message.digest)
    elif (answer := core.load_adapter(message)) is not None:
        link.send(answer)


def _refused(request: EngineRequest, reason: str) -> list[EngineOutput]:
    return [
        EngineOutput(request.request_id, [], index, FinishReason.ERROR, error=reason)
        for index in range(request.sampling.n)
    ]


def _send_heartbeats(make_sender: Callable[[], Sender], pulse: Pulse) -> None:
    sender = make_sender()
    while not pulse.stopped.wait(HEARTBEAT_INTERVAL_S):
        sender.send(pulse.beat(time.monotonic()))
    sender.close()


def _unexpected(cause: Cause, message: str, error: Exception) -> FailureReport:
    frames = traceback.format_exception(error)[-4:]
    detail: dict[str, Any] = {"traceback": "".join(frames)[-2000:]}
    remedy = "the process is started again; if it keeps happening, report the traceback in the log"
    return FailureReport(cause, f"{message}: {type(error).__name__}: {error}", remedy, detail)


def _die_with_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the front end decides
    if sys.platform != "linux":
        return
    parent = os.getppid()
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.prctl(_PR_SET_NAME, b"kvasir-engine")
    if os.getppid() != parent:  # it ended before the kernel knew
        os._exit(1)


def _end_with_stdin() -> None:
    while sys.stdin.buffer.read(4096):
        continue
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
