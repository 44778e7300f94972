"""Progress of a fetch: bars on a terminal, lines in a container's log."""

import json
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Literal, Protocol, TextIO

from kvasir_runtime.contract.quantities import format_bytes

Style = Literal["auto", "rich", "plain", "json"]


class Reporter(Protocol):
    """Receives what happens, from any thread."""

    def start(self, files: int, total: int | None) -> None:
        """`total` bytes in `files` files are to come; None when the source does not say how many."""
        ...

    def advance(self, count: int) -> None:
        """`count` more bytes are on disk; negative when a file starts over."""
        ...

    def note(self, message: str) -> None:
        """Something a reader of the log wants to know."""
        ...

    def finish(self) -> None: ...


def reporter(style: Style, stream: TextIO | None = None) -> Reporter:
    out = stream or sys.stderr
    if style == "auto":
        style = "rich" if out.isatty() else "plain"
    if style != "rich":
        return LineReporter(out, as_json=style == "json")
    from kvasir_runtime.fetch.bars import BarReporter  # noqa: PLC0415 - servers fetch adapters and draw no bars

    return BarReporter(out)


class LineReporter:
    """At most one line every `interval` seconds: percent, bytes, rate (of the last interval) and time left."""

    def __init__(
        self, out: TextIO, *, as_json: bool, interval: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._out, self._as_json, self._interval, self._clock = out, as_json, interval, clock
        self._lock = threading.Lock()
        self._total: int | None = None
        self._done = self._told = 0
        self._told_at = clock()

    def start(self, files: int, total: int | None) -> None:
        self._total, self._told_at = total, self._clock()
        size = format_bytes(total) if total is not None else "an unknown number of bytes"
        self.note(f"fetching {files} files, {size}")

    def advance(self, count: int) -> None:
        with self._lock:
            self._done += count
            if self._clock() - self._told_at >= self._interval:
                self._tell()

    def note(self, message: str) -> None:
        self._write({"message": message}, message)

    def finish(self) -> None:
        with self._lock:
            if self._done != self._told:
                self._tell()

    def _tell(self) -> None:
        now = self._clock()
        rate = max(0, self._done - self._told) / max(now - self._told_at, 1e-3)
        self._told, self._told_at = self._done, now
        facts: dict[str, float] = {"bytes": self._done, "mb_per_s": round(rate / 1e6, 1)}
        words = f"{format_bytes(self._done)}, {rate / 1e6:.1f} MB/s"
        if self._total:
            facts |= {"total": self._total, "percent": round(100 * self._done / self._total, 1)}
            words = f"{facts['percent']:5.1f} % of {format_bytes(self._total)}, {rate / 1e6:.1f} MB/s"
            if rate and self._total > self._done:
                facts["seconds_left"] = round((self._total - self._done) / rate)
                words += f", {facts['seconds_left']} s left"
        self._write({"message": "progress", **facts}, words)

    def _write(self, facts: Mapping[str, object], words: str) -> None:
        line = (
            json.dumps({"time": round(time.time(), 3), "event": "fetch", **facts})
            if self._as_json
            else f"fetch: {words}"
        )
        print(line, file=self._out, flush=True)
