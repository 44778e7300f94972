"""Messages between front end and engine: msgpack over two ZeroMQ pipes in a private folder.

A frame is one byte that names the message's class, then its fields. `requests` leads to the engine, `outputs` back;
the front end binds both before the engine starts, so neither side can miss the other.
"""

import os
import tempfile
from pathlib import Path
from typing import Any, Final

import msgspec
import zmq

from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.engine.messages import (
    AbortRequests,
    AbortSequences,
    AdapterLoaded,
    AdapterStates,
    CacheReset,
    CacheSaved,
    EngineFailed,
    EngineReady,
    EngineRequest,
    FromEngine,
    FromFrontEnd,
    Heartbeat,
    ListPrefixes,
    LoadAdapter,
    PrefixesListed,
    ResetCache,
    SaveCache,
    SetSleep,
    SleepDone,
    StartupProgress,
    StepOutputs,
    UnloadAdapter,
)

_CLASSES: Final[tuple[type[Any], ...]] = (
    EngineRequest,
    AbortRequests,
    AbortSequences,
    StepOutputs,
    StartupProgress,
    EngineReady,
    EngineFailed,
    Heartbeat,
    ListPrefixes,
    PrefixesListed,
    SetSleep,
    SleepDone,
    LoadAdapter,
    UnloadAdapter,
    AdapterLoaded,
    AdapterStates,
    SaveCache,
    CacheSaved,
    ResetCache,
    CacheReset,
)
_TAGS: Final = {cls: bytes([tag]) for tag, cls in enumerate(_CLASSES)}
_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODERS: Final = tuple(msgspec.msgpack.Decoder(cls) for cls in _CLASSES)

MAX_SOCKET_PATH: Final = 107
"""Bytes of a Unix socket's path that Linux allows."""

LAST_WORDS_MS: Final = 2000
"""How long an ending engine waits until its last message is taken."""


def encode(message: FromEngine | FromFrontEnd) -> bytes:
    return _TAGS[type(message)] + _ENCODER.encode(message)


def decode(frame: bytes) -> Any:
    """Rebuild a message; raises ValueError on bytes that no version of `encode` made."""
    if not frame or frame[0] >= len(_DECODERS):
        msg = f"unknown message tag {frame[:1]!r}"
        raise ValueError(msg)
    return _DECODERS[frame[0]].decode(memoryview(frame)[1:])


def make_socket_folder() -> Path:
    """Make a folder that only this user may enter; raises KvasirError when nothing is writable.

    A pod with a read-only root file system may have no /tmp, but the container runtime always mounts /dev/shm.
    """
    for parent in (tempfile.gettempdir, lambda: "/dev/shm"):  # noqa: S108 - mkdtemp makes the name safe
        try:
            folder = Path(tempfile.mkdtemp(prefix="kvasir-", dir=parent()))
        except OSError:
            continue
        if len(os.fsencode(folder / "requests")) <= MAX_SOCKET_PATH:
            return folder
        folder.rmdir()
    raise KvasirError(
        Cause.INVALID_ARGUMENTS,
        f"no writable folder with a path of at most {MAX_SOCKET_PATH} bytes for the engine's sockets",
        "mount an emptyDir at /tmp or set TMPDIR",
    )


def requests_address(folder: Path) -> str:
    return f"ipc://{folder}/requests"


def outputs_address(folder: Path) -> str:
    return f"ipc://{folder}/outputs"


class FrontEndLink:
    """The front end's end: both pipes, bound before the engine starts, so that not even its first words are lost."""

    def __init__(self, folder: Path) -> None:
        self._context = zmq.Context(io_threads=1)
        self.folder = folder
        self.requests = self._context.socket(zmq.PUSH)
        self.requests.set(zmq.SNDHWM, 0)
        self.requests.bind(requests_address(folder))
        self.outputs = self._context.socket(zmq.PULL)
        self.outputs.set(zmq.RCVHWM, 0)
        self.outputs.bind(outputs_address(folder))

    def send(self, message: FromFrontEnd) -> None:
        """Hand a message over; never blocks."""
        self.requests.send(encode(message))

    def forget_addresses(self) -> None:
        """Remove the pipes' names from the file system; those who are connected stay so. Harmless again."""
        for name in ("requests", "outputs"):
            (self.folder / name).unlink(missing_ok=True)
        if self.folder.exists():
            self.folder.rmdir()

    def close(self) -> None:
        """Drop what was not delivered and free everything."""
        self.requests.close(linger=0)
        self.outputs.close(linger=0)
        self._context.term()
        self.forget_addresses()


class EngineLink:
    """The engine's end. One thread's alone: every thread that sends makes its own `Sender`."""

    def __init__(self, folder: Path) -> None:
        self._context = zmq.Context(io_threads=1)
        self._folder = folder
        self._requests = self._context.socket(zmq.PULL)
        self._requests.set(zmq.RCVHWM, 0)
        self._requests.connect(requests_address(folder))
        self._outputs = self.sender()

    def sender(self) -> "Sender":
        return Sender(self._context, self._folder)

    def send(self, message: FromEngine) -> None:
        self._outputs.send(message)

    def receive(self, timeout_s: float) -> list[FromFrontEnd]:
        """Take all that waits; when nothing does, wait up to `timeout_s` seconds for the first."""
        messages: list[FromFrontEnd] = []
        if timeout_s > 0 and not self._requests.poll(int(timeout_s * 1000)):
            return messages
        while True:
            try:
                messages.append(decode(self._requests.recv(zmq.NOBLOCK)))
            except zmq.Again:
                return messages

    def close(self) -> None:
        """Let the last message out, then leave."""
        self._requests.close(linger=0)
        self._outputs.close()
        self._context.term()


class Sender:
    """One thread's way to the front end. Never blocks: what the front end has not read yet is kept in memory."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", folder: Path) -> None:
        self._socket = context.socket(zmq.PUSH)
        self._socket.set(zmq.SNDHWM, 0)
        self._socket.connect(outputs_address(folder))

    def send(self, message: FromEngine) -> None:
        self._socket.send(encode(message))

    def close(self) -> None:
        self._socket.close(linger=LAST_WORDS_MS)
