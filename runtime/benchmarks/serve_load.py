"""How a whole server bears many clients: errors, fairness, CPU per request, memory.

Starts `kvasir-runtime serve`, sends completions over plain sockets, so that the client costs little of the machine, and
prints one table row for each round; `--json` prints one object a round. The exit status is 1 when a request failed,
somebody waited three times the median, or memory grew by more than 5 % after the first round. Example:

    python runtime/benchmarks/serve_load.py --model tests/models/tiny-llama --clients 500 --requests 2000 --rounds 3
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

START_TIMEOUT_S = 300.0
MAX_WAIT = 3.0
"""Times the median that no client may wait."""
MAX_GROWTH = 1.05
"""Of resident memory after the first round, by which everything has been used once."""


@dataclass(frozen=True)
class Round:
    """One round's numbers. Seconds, milliseconds of CPU for each request, MiB resident."""

    requests: int
    errors: int
    seconds: float
    latency_p50_s: float
    latency_p99_s: float
    latency_max_s: float
    front_end_cpu_ms: float
    engine_cpu_ms: float
    front_end_rss_mib: float
    engine_rss_mib: float


@dataclass(frozen=True)
class Load:
    """What every client does."""

    clients: int
    requests: int
    tokens: int
    stream: bool
    prompt: str

    def body(self) -> bytes:
        fields = {"prompt": self.prompt, "max_tokens": self.tokens, "stream": self.stream, "ignore_eos": True}
        return json.dumps(fields).encode()


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[bytes]
    port: int

    @property
    def engine_pid(self) -> int:
        pid = self.process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server must not outlive us
    load = Load(args.clients, args.requests, args.tokens, not args.whole, args.prompt)
    server = start(args.model, args.server_args)
    rounds: list[Round] = []
    try:
        for number in range(args.rounds):
            result = asyncio.run(run_round(server, load))
            rounds.append(result)
            print(json.dumps(asdict(result)) if args.json else _row(result, heading=number == 0), flush=True)
    finally:
        server.process.send_signal(signal.SIGTERM)
        server.process.wait()
    for shortcoming in (found := shortcomings(rounds)):
        print(shortcoming, file=sys.stderr)
    return 1 if found else 0


def shortcomings(rounds: Sequence[Round]) -> list[str]:
    """What a server must not do to its clients and its machine, and did."""
    found = [f"{errors} requests failed" for errors in [sum(each.errors for each in rounds)] if errors]
    for number, each in enumerate(rounds, 1):
        if each.latency_max_s >= MAX_WAIT * each.latency_p50_s:
            found.append(
                f"round {number}: a client waited {each.latency_max_s} s, the median is {each.latency_p50_s} s"
            )
    for name in ("front_end_rss_mib", "engine_rss_mib"):
        first, most = getattr(rounds[0], name), max(getattr(each, name) for each in rounds)
        if most > first * MAX_GROWTH:
            found.append(f"{name} grew from {first} to {most}")
    return found


def start(model: str, flags: Sequence[str]) -> Server:
    """Start a server on free ports and wait until it is ready."""
    port, admin_port = _free_ports(2)
    command = [sys.executable, "-m", "kvasir_runtime", "serve", "--model", model, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--admin-port", str(admin_port), "--log-level", "warning", *flags]
    log = Path(tempfile.mkstemp(prefix="serve-load-", suffix=".log")[1])
    with log.open("wb") as stream:
        server = Server(subprocess.Popen(command, stdout=stream, stderr=stream), port)
    deadline = time.monotonic() + START_TIMEOUT_S
    try:
        while not _is_ready(admin_port):
            if server.process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the server did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.2)
    except BaseException:
        server.process.kill()
        raise
    return server


async def run_round(server: Server, load: Load) -> Round:
    """Send all requests, at most `clients` at a time, and measure."""
    engine = server.engine_pid
    cpu = _cpu_seconds(server.process.pid), _cpu_seconds(engine)
    started = time.monotonic()
    free = asyncio.Semaphore(load.clients)
    answers = await asyncio.gather(*(_request(server.port, load, free) for _ in range(load.requests)))
    latencies = sorted(seconds for _, seconds in answers)
    return Round(
        requests=load.requests,
        errors=sum(not ok for ok, _ in answers),
        seconds=round(time.monotonic() - started, 2),
        latency_p50_s=round(latencies[len(latencies) // 2], 3),
        latency_p99_s=round(latencies[len(latencies) * 99 // 100], 3),
        latency_max_s=round(latencies[-1], 3),
        front_end_cpu_ms=round((_cpu_seconds(server.process.pid) - cpu[0]) / load.requests * 1000, 3),
        engine_cpu_ms=round((_cpu_seconds(engine) - cpu[1]) / load.requests * 1000, 3),
        front_end_rss_mib=round(_rss_mib(server.process.pid), 1),
        engine_rss_mib=round(_rss_mib(engine), 1),
    )


async def _request(port: int, load: Load, free: asyncio.Semaphore) -> tuple[bool, float]:
    """One request: whether it was answered to its end, and how long that took once it was its turn."""
    body = load.body()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    async with free:
        started = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        answer = await reader.read(-1)
        writer.close()
        complete = b"data: [DONE]" in answer if load.stream else b'"usage"' in answer
        return answer.startswith(b"HTTP/1.1 200 ") and complete, time.monotonic() - started


def _row(result: Round, *, heading: bool) -> str:
    row = " | ".join(str(value) for value in asdict(result).values())
    titles = " | ".join(asdict(result))
    return (f"| {titles} |\n|{'---|' * len(asdict(result))}\n" if heading else "") + f"| {row} |"


def _is_ready(admin_port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{admin_port}/readyz", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rss_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="DIR")
    parser.add_argument("--clients", type=int, default=500, metavar="N", help="concurrent clients (default 500)")
    parser.add_argument("--requests", type=int, default=2000, metavar="N", help="requests a round (default 2000)")
    parser.add_argument("--tokens", type=int, default=16, metavar="N", help="tokens of each answer (default 16)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds on one server (default 3)")
    parser.add_argument("--prompt", default="def foo(a, b): return a + b", metavar="TEXT")
    parser.add_argument("--whole", action="store_true", help="do not stream")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("server_args", nargs="*", metavar="-- FLAGS", help="flags for the server, after --")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
