"""How long a server takes from the start of its process to Ready, by phase, with its model in the page cache.

Starts `kvasir-runtime serve` several times, one after the other; the first start does not count. Prints a table: the
phases as the server reports them, Ready as seen from outside, and the first requests: the first one must not be slower
for anything that is built or loaded only then. Example:

    python runtime/benchmarks/cold_start.py --model ~/.cache/kvasir/bench/models/llama-… --runs 5
"""

import argparse
import http
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_TIMEOUT_S = 300.0
POLL_S = 0.01
READ_CHUNK = 16 << 20
NUM_REQUESTS = 3
KERNELS = Path.home() / ".cache" / "kvasir" / "kernels"


@dataclass(frozen=True)
class Start:
    """One start. Seconds; `built_later` names what appeared in the kernels' cache after Ready."""

    ready: float
    phases: dict[str, float]
    requests: list[float]
    built_later: list[str]


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server must not outlive us
    size = read_into_page_cache(args.model)
    measure(args.model, args.server_args)  # builds the kernels where they are not yet, and warms the libraries' pages
    starts = [measure(args.model, args.server_args) for _ in range(args.runs)]
    print(json.dumps([vars(start) for start in starts]) if args.json else table(starts, size))
    built = sorted({name for start in starts for name in start.built_later})
    if built:
        print(f"built only after Ready: {', '.join(built)}", file=sys.stderr)
    return 1 if built else 0


def read_into_page_cache(model: Path) -> int:
    """Read every file once; returns their bytes."""
    size = 0
    for file in sorted(path for path in model.iterdir() if path.is_file()):
        with file.open("rb") as stream:
            while chunk := stream.read(READ_CHUNK):
                size += len(chunk)
    return size


def measure(model: Path, flags: Sequence[str]) -> Start:
    """Start a server, wait until it is ready, send it some requests, end it."""
    port, admin_port = _free_ports(2)
    command = [sys.executable, "-m", "kvasir_runtime", "serve", "--model", str(model), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--admin-port", str(admin_port), "--log-level", "warning", *flags]
    log = Path(tempfile.mkstemp(prefix="cold-start-", suffix=".log")[1])
    started = time.monotonic()
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
    try:
        state = _wait_ready(process, admin_port, log)
        ready, kernels = time.monotonic() - started, _built()
        requests = [_request(port) for _ in range(NUM_REQUESTS)]
        return Start(round(ready, 3), state["startup"]["seconds"], requests, sorted(_built() - kernels))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        log.unlink()


def table(starts: Sequence[Start], size: int) -> str:
    """Median, least and most of every phase, and of what a client sees."""
    rows = {name: [start.phases[name] for start in starts] for name in starts[0].phases}
    rows["Ready, seen from outside"] = [start.ready for start in starts]
    for number in range(NUM_REQUESTS):
        rows[f"request {number + 1}, one token"] = [start.requests[number] for start in starts]
    lines = [f"{size / 1e6:.0f} MB of model files in the page cache, {len(starts)} starts, {os.cpu_count()} CPUs", ""]
    lines += ["| phase | median s | least s | most s |", "|---|---|---|---|"]
    for name, values in rows.items():
        numbers = " | ".join(f"{value:.3f}" for value in (statistics.median(values), min(values), max(values)))
        lines.append(f"| {name} | {numbers} |")
    return "\n".join(lines)


def _wait_ready(process: "subprocess.Popen[bytes]", admin_port: int, log: Path) -> dict[str, Any]:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            status, reply = _http(admin_port, "GET", "/readyz")
        except OSError:
            status, reply = 0, b""
        if status == http.HTTPStatus.OK:
            return dict(json.loads(reply))
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"the server did not start:\n{log.read_text()[-2000:]}")
        time.sleep(POLL_S)


def _request(port: int) -> float:
    body = json.dumps({"prompt": [5, 6, 7, 8], "max_tokens": 1, "ignore_eos": True})
    started = time.monotonic()
    status, reply = _http(port, "POST", "/v1/completions", body)
    if status != http.HTTPStatus.OK:
        sys.exit(f"a request failed: {reply[:500]!r}")
    return round(time.monotonic() - started, 4)


def _http(port: int, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def _built() -> set[str]:
    return {str(path.relative_to(KERNELS)) for path in KERNELS.rglob("*") if path.is_file()}


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, metavar="DIR")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="starts (default 5)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("server_args", nargs="*", metavar="-- FLAGS", help="flags for the server, after --")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
