"""A small model's files, and stand-ins for terminal and clock."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from kvasir_runtime.fetch.fetcher import Request

MakeRequest = Callable[..., Request]


def safetensors(count: int = 64, value: int = 1) -> bytes:
    """A file with one tensor of `count` bytes."""
    header = json.dumps({"weight": {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes([value]) * count


def model_files(size: int = 200_000) -> dict[str, bytes]:
    return {
        "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
        "model.safetensors": safetensors(size),
        "tokenizer.json": b'{"version": "1.0"}',
        "tokenizer_config.json": b"{}",
    }


@dataclass
class Recorder:
    """A reporter for assertions."""

    notes: list[str] = field(default_factory=list)
    done: int = 0
    total: int | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, files: int, total: int | None) -> None:
        self.total = total

    def advance(self, count: int) -> None:
        with self.lock:
            self.done += count

    def note(self, message: str) -> None:
        self.notes.append(message)

    def finish(self) -> None: ...


@dataclass
class Waits:
    """Stands for the clock: remembers how long the retries would have slept."""

    seconds: list[float] = field(default_factory=list)

    def __call__(self, seconds: float) -> bool:
        self.seconds.append(seconds)
        return False
