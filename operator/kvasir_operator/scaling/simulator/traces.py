"""Requests to replay: public traces and files of one's own, at other time scales.

Known formats, by their content:

- CSV with the columns TIMESTAMP, ContextTokens, GeneratedTokens: the Azure LLM inference traces.
- JSON lines with timestamp (ms), input_length, output_length and, if known, hash_ids of 512-token prefix blocks: the
  Mooncake traces.
"""

import csv
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

HASHED_TOKENS: Final = 512
"""Tokens of one hash id."""
_COPY: Final = 1 << 40
"""Added to the hash ids of each further copy of a request, so that copies share no prefix."""
_JITTER_S: Final = 5.0
"""Copies of a request arrive within so much of it, before the time scale."""


class TraceError(ValueError):
    """A file that is no trace; the text names the line and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request: seconds since the beginning, tokens, and hashes of its prompt's blocks, equal for equal prefixes."""

    arrival: float
    prompt: int
    output: int
    blocks: tuple[int, ...] = ()


def read_trace(path: Path) -> list[Request]:
    """Read a trace, earliest request first, its time beginning at 0. Raises TraceError, or OSError."""
    with path.open(encoding="utf-8", newline="") as file:
        first = file.readline()
        file.seek(0)
        rows = _json_rows(file) if first.lstrip().startswith("{") else _csv_rows(file)
        found = sorted(_typed(path, rows), key=lambda request: request.arrival)
    if not found:
        raise TraceError(f"{path}: holds no requests")
    begin = found[0].arrival
    return [replace(request, arrival=request.arrival - begin) for request in found]


def _typed(path: Path, rows: Iterator[Request]) -> list[Request]:
    """All requests; the first that cannot be read is told by its number."""
    found: list[Request] = []
    try:
        found.extend(_checked(request) for request in rows)
    except KeyError as error:
        raise TraceError(f"{path}: request {len(found) + 1} lacks the field {error}") from error
    except (TypeError, ValueError) as error:
        raise TraceError(f"{path}: request {len(found) + 1}: {error}") from error
    return found


def _checked(request: Request) -> Request:
    if request.prompt < 1 or request.output < 1:
        raise ValueError(f"tokens must be at least 1, got {request.prompt} and {request.output}")
    return request


def _csv_rows(file: Any) -> Iterator[Request]:
    for row in csv.DictReader(file):
        arrival = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
        yield Request(arrival, int(row["ContextTokens"]), max(1, int(row["GeneratedTokens"])))


def _json_rows(file: Any) -> Iterator[Request]:
    for line in file:
        row = json.loads(line)
        blocks = tuple(row.get("hash_ids", ()))
        yield Request(row["timestamp"] / 1000, int(row["input_length"]), max(1, int(row["output_length"])), blocks)


def rescale(trace: list[Request], stretch: float, load: float, seed: int) -> list[Request]:
    """The trace at another time scale: `stretch` times as long, with `load` times as many requests a second.

    Each request stands for `stretch x load` that come around its time, drawn by `seed`: so the envelope of the demand
    is stretched and its noise is not. Scale 1 with seed 0 is the trace itself.
    """
    if stretch == 1 and load == 1 and seed == 0:
        return trace
    draw = random.Random(seed)  # noqa: S311 - draws requests, guards nothing
    end = trace[-1].arrival
    found: list[Request] = []
    for request in trace:
        count = stretch * load
        copies = int(count) + (draw.random() < count - int(count))
        for copy in range(copies):
            at = min(end, max(0.0, request.arrival + draw.uniform(-_JITTER_S, _JITTER_S)))
            blocks = tuple(block + copy * _COPY for block in request.blocks)
            found.append(replace(request, arrival=at * stretch, blocks=blocks))
    return sorted(found, key=lambda request: request.arrival)
