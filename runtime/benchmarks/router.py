"""What the router costs, and how often it finds the replica that holds a prompt's prefix.

`load` starts two replicas that answer at once, and a router on one core of its own; clients and replicas share another.
It prints what the router adds to the latency of many concurrent streams, and how many small requests it takes a second.
`trace` replays a trace of prefix blocks (as Mooncake published it, a JSON object a line) with simulated replicas:

    python runtime/benchmarks/router.py load --streams 300
    python runtime/benchmarks/router.py trace --trace conversation_trace.jsonl --replicas 8
"""

import argparse
import asyncio
import heapq
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import cast

import uvloop

from kvasir_router.policies import LeastLoad, Policy, PrefixAffinity, RoundRobin
from kvasir_router.prompts import BOUNDARIES, BYTES_PER_TOKEN, OUTPUT_TOKENS, Ask

REPLICA_PORTS = (18101, 18102)
ROUTER_PORT, ADMIN_PORT = 18100, 18103
CHUNK_S = 0.05
"""Between two tokens of a stream: 20 tokens a second."""
ARRIVALS_S = 4.0
"""Over which the streams begin; they go on together after that."""


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    if args.command == "trace":
        return report_trace(args)
    if args.command == "replica":
        return uvloop.run(serve_replica(args.port))
    return uvloop.run(report_load(args))


# Load: replicas, clients, numbers


class Replica(asyncio.Protocol):
    """Answers a whole request at once with a small JSON object, a streaming one with tokens that say when they left."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._seen = b""

    def data_received(self, data: bytes) -> None:
        self._seen += data
        head, found, body = self._seen.partition(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"), 0)
        if not found or len(body) < length:
            return
        self._seen = b""
        if b'"stream": true' in body:
            self._task = asyncio.ensure_future(self._stream(json.loads(body)["max_tokens"]))
        else:
            answer = b'{"choices":[{"text":" yes"}]}'
            self._write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 29\r\n\r\n" + answer)

    async def _stream(self, tokens: int) -> None:
        self._write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(tokens):
            event = b"data: %.6f\n\n" % time.monotonic()
            self._write(b"%x\r\n%b\r\n" % (len(event), event))
            await asyncio.sleep(CHUNK_S)
        self._write(b"0\r\n\r\n")

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)


async def serve_replica(port: int) -> int:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_server(Replica, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()
    return 0


async def stream_once(port: int, tokens: int, prompt: str) -> tuple[float, list[float]]:
    """One stream; seconds to its first token, and seconds that each token was on its way."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps({"prompt": prompt, "max_tokens": tokens, "stream": True}).encode()
    began, first = time.monotonic(), 0.0
    delays: list[float] = []
    writer.write(_head(len(body)) + body)
    while len(delays) < tokens:
        line = await reader.readline()
        if line.startswith(b"data: "):
            delays.append(time.monotonic() - float(line[6:]))
            first = first or time.monotonic() - began
        elif not line:
            raise RuntimeError(f"the stream ended after {len(delays)} of {tokens} tokens")
    writer.close()
    return first, delays


async def small_requests(port: int, clients: int, seconds: float) -> int:
    """Requests that `clients` connections get answered, one after the other, in `seconds`."""
    end = time.monotonic() + seconds

    async def client(number: int) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = json.dumps({"prompt": f"client {number}: " + "is it so? " * 20, "max_tokens": 1}).encode()
        request, done = _head(len(body)) + body, 0
        while time.monotonic() < end:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(29)
            assert head.startswith(b"HTTP/1.1 200"), head
            done += 1
        writer.close()
        return done

    return sum(await asyncio.gather(*(client(number) for number in range(clients))))


def _head(length: int) -> bytes:
    return (
        b"POST /v1/completions HTTP/1.1\r\nhost: router\r\ncontent-type: application/json\r\n"
        b"authorization: Bearer key-1\r\ncontent-length: %d\r\n\r\n" % length
    )


async def report_load(args: argparse.Namespace) -> int:
    """Start everything, measure, print two tables; 1 when a goal is missed."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    with tempfile.TemporaryDirectory() as folder:
        processes = [_spawn([__file__, "replica", "--port", str(port)], cores[-1]) for port in REPLICA_PORTS]
        try:
            router = _spawn_router(Path(folder), cores[0])
            processes.append(router)
            await _wait_for_ports([*REPLICA_PORTS, ROUTER_PORT])
            missed = await _report_streams(args, router.pid) + await _report_small(args, router.pid)
        finally:
            for process in processes:
                process.send_signal(signal.SIGKILL)
                process.wait()
    return 1 if missed else 0


async def _report_streams(args: argparse.Namespace, pid: int) -> int:
    print(f"{args.streams} concurrent streams of {args.tokens} tokens, one each {CHUNK_S * 1000:g} ms; milliseconds\n")
    print("| way | token p50 | p99 | max | first token p50 | p99 | router CPU share | router waited for its core |")
    print("|---|---|---|---|---|---|---|---|")
    rows = {}
    for way, ports in (("direct", REPLICA_PORTS), ("router", (ROUTER_PORT,))):
        await asyncio.gather(*(stream_once(ports[0], 20, "warm") for _ in range(args.streams)))  # connections are kept
        cpu, waited, began = _cpu_seconds(pid), _run_queue_seconds(pid), time.monotonic()
        results = await asyncio.gather(*(_later(number, args, ports) for number in range(args.streams)))
        took = time.monotonic() - began
        shares = [(_cpu_seconds(pid) - cpu) / took, (_run_queue_seconds(pid) - waited) / took]
        delays = [1000 * delay for _, each in results for delay in each]
        firsts = [1000 * first for first, _ in results]
        rows[way] = [*(_quantile(delays, q) for q in (0.5, 0.99, 1.0)), *(_quantile(firsts, q) for q in (0.5, 0.99))]
        print(
            f"| {way} | "
            + " | ".join(f"{value:.2f}" for value in rows[way])
            + " | "
            + " | ".join(map("{:.0%}".format, shares))
            + " |"
        )
    added = [routed - direct for routed, direct in zip(rows["router"], rows["direct"], strict=True)]
    print("| added | " + " | ".join(f"{value:.2f}" for value in added) + " | | |\n")
    return (added[0] > 2) + (added[1] > 5)


async def _later(number: int, args: argparse.Namespace, ports: Sequence[int]) -> tuple[float, list[float]]:
    await asyncio.sleep(ARRIVALS_S * number / args.streams)
    return await stream_once(ports[number % len(ports)], args.tokens, f"conversation {number}: " + "and then " * 200)


async def _report_small(args: argparse.Namespace, pid: int) -> int:
    print(f"small requests, {args.clients} connections, {args.seconds:g} s\n")
    print("| way | requests/s | router CPU ms a request | router CPU share |")
    print("|---|---|---|---|")
    rate = 0.0
    for way, port in (("direct", REPLICA_PORTS[0]), ("router", ROUTER_PORT)):
        cpu = _cpu_seconds(pid)
        done = await small_requests(port, args.clients, args.seconds)
        used, rate = _cpu_seconds(pid) - cpu, done / args.seconds
        print(f"| {way} | {rate:.0f} | {1000 * used / done:.3f} | {used / args.seconds:.0%} |", flush=True)
    return rate < 1500


def _spawn(command: Sequence[str], core: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, *command], preexec_fn=lambda: os.sched_setaffinity(0, {core}))  # noqa: PLW1509


def _spawn_router(folder: Path, core: int) -> subprocess.Popen[bytes]:
    endpoints = [{"name": f"replica-{port}", "address": f"127.0.0.1:{port}"} for port in REPLICA_PORTS]
    file, keys = folder / "endpoints.json", folder / "keys"
    file.write_text(json.dumps({"version": "1", "endpoints": endpoints}))
    keys.write_text("".join(f"key-{number}\n" for number in range(10)))
    log = (folder / "log").open("wb")
    command = ["-m", "kvasir_router", "--port", str(ROUTER_PORT), "--admin-port", str(ADMIN_PORT)]
    command += ["--endpoints-file", str(file), "--api-key-file", str(keys), "--log-format", "json"]
    return subprocess.Popen(
        [sys.executable, *command],
        stderr=log,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),  # noqa: PLW1509
    )


async def _wait_for_ports(ports: Sequence[int]) -> None:
    deadline = time.monotonic() + 30
    for port in ports:
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.05)
            else:
                writer.close()
                break


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _run_queue_seconds(pid: int) -> float:
    """How long it could have run, and other processes had the core."""
    return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="utf-8").split()[1]) / 1e9


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


# Trace: simulated replicas

HASHED_TOKENS = 512
"""Tokens of one block in Mooncake's traces."""


@dataclass(frozen=True)
class Request:
    """One of a trace: seconds, tokens, and its prefix blocks."""

    arrival: float
    prompt: int
    output: int
    blocks: tuple[int, ...]
    ask: Ask


def read_trace(path: Path, scale: float = 1.0) -> list[Request]:
    """Read a trace; `scale` 2 makes it twice as fast."""
    requests = []
    for line in path.read_text(encoding="utf-8").splitlines():
        fields = json.loads(line)
        blocks = tuple(fields["hash_ids"])
        ask = Ask(blocks=hashes(blocks), cost=fields["input_length"] + OUTPUT_TOKENS)
        arrival = fields["timestamp"] / 1000 / scale
        requests.append(Request(arrival, fields["input_length"], fields["output_length"], blocks, ask))
    return requests


def hashes(blocks: tuple[int, ...]) -> tuple[int, ...]:
    """What the router would make of a prompt with these blocks: a hash at each of its boundaries."""
    found = []
    for boundary in BOUNDARIES:
        count = -(-boundary // (HASHED_TOKENS * BYTES_PER_TOKEN))
        if count > len(blocks):
            break
        digest = blake2b(repr((boundary, blocks[:count])).encode(), digest_size=8).digest()
        found.append(int.from_bytes(digest, "little"))
    return tuple(found)


@dataclass
class SimulatedReplica:
    """Computes prompts one after the other, all else beside them, and keeps the latest blocks of its prompts."""

    capacity: int
    prefill_per_s: float
    token_s: float
    cache: OrderedDict[int, None] = field(default_factory=OrderedDict)
    busy_until: float = 0.0

    def serve(self, request: Request) -> tuple[int, float, float]:
        """Blocks found in the cache, when its first token is out, and when its last one is."""
        hits = 0
        for block in request.blocks:
            if block not in self.cache:
                break
            hits += 1
        for block in request.blocks:
            self.cache[block] = None
            self.cache.move_to_end(block)
        while len(self.cache) > self.capacity:
            self.cache.popitem(last=False)
        work = max(1, request.prompt - hits * HASHED_TOKENS) / self.prefill_per_s
        self.busy_until = max(self.busy_until, request.arrival) + work
        return hits, self.busy_until, self.busy_until + request.output * self.token_s


@dataclass(frozen=True)
class Outcome:
    """Of one run: share of blocks found, seconds to the first token, and tokens of the fullest against the mean."""

    hit_share: float
    ttft_mean: float
    ttft_p95: float
    imbalance: float


def simulate(
    trace: Sequence[Request], make: Callable[[], Policy], replicas: int, capacity: int, *, routers: int = 1
) -> Outcome:
    """Replay a trace. Each request comes to one of `routers` that know nothing of each other's requests."""
    fleet = {f"replica-{number}": SimulatedReplica(capacity, 10_000, 0.02) for number in range(replicas)}
    policies = [make() for _ in range(routers)]
    loads = [dict.fromkeys(fleet, 0.0) for _ in range(routers)]
    draw = random.Random(1)  # noqa: S311 - which router a client reaches
    ends: list[tuple[float, int, str, int]] = []
    hits, blocks, ttfts, imbalances = 0, 0, [], []
    for request in trace:
        while ends and ends[0][0] <= request.arrival:
            _, router, name, cost = heapq.heappop(ends)
            loads[router][name] -= cost
        router = draw.randrange(routers)
        choice = policies[router].choose(request.ask, loads[router])
        policies[router].sent(request.ask, choice.name)
        found, first, end = fleet[choice.name].serve(request)
        loads[router][choice.name] += request.ask.cost
        heapq.heappush(ends, (end, router, choice.name, request.ask.cost))
        hits, blocks = hits + found, blocks + len(request.blocks)
        ttfts.append(first - request.arrival)
        totals = [sum(each[name] for each in loads) for name in fleet]
        imbalances.append(max(totals) * replicas / sum(totals))
    return Outcome(hits / blocks, statistics.fmean(ttfts), _quantile(ttfts, 0.95), statistics.fmean(imbalances))


def report_trace(args: argparse.Namespace) -> int:
    """Print a table; 1 when prefix affinity misses one of its goals with endless caches."""
    trace = read_trace(args.trace, args.scale)
    endless = 10**9
    ideal = simulate(trace, RoundRobin, 1, endless).hit_share
    print(f"{len(trace)} requests, {args.replicas} replicas; one endless cache would find {ideal:.1%} of the blocks\n")
    print("| cache of a replica | policy | routers | blocks found | TTFT mean s | p95 s | fullest to mean |")
    print("|---|---|---|---|---|---|---|")
    subjects: list[tuple[str, Callable[[], Policy], int]] = [
        ("RoundRobin", RoundRobin, 1), ("LeastLoad", LeastLoad, 1), ("PrefixAffinity", PrefixAffinity, 1),
        ("PrefixAffinity", PrefixAffinity, 3),
    ]  # fmt: skip
    found: dict[str, float] = {}
    for tokens in (None, *args.cache_tokens):
        capacity = endless if tokens is None else tokens // HASHED_TOKENS
        for name, make, routers in subjects:
            run = simulate(trace, make, args.replicas, capacity, routers=routers)
            if tokens is None and routers == 1:
                found[name] = run.hit_share
            size = "endless" if tokens is None else f"{tokens:,} tokens"
            figures = f"{run.hit_share:.1%} | {run.ttft_mean:.2f} | {run.ttft_p95:.2f} | {run.imbalance:.2f}"
            print(f"| {size} | {name} | {routers} | {figures} |", flush=True)
    kept = found["PrefixAffinity"] >= ideal - 0.05 and found["PrefixAffinity"] >= 2 * found["RoundRobin"]
    return 0 if kept else 1


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    load = commands.add_parser("load", help="added latency, and requests a second on one core")
    load.add_argument("--streams", type=int, default=300, help="concurrent streams")
    load.add_argument("--tokens", type=int, default=200, help="tokens of each stream")
    load.add_argument("--clients", type=int, default=64, help="connections that send small requests")
    load.add_argument("--seconds", type=float, default=10, help="how long these are sent")
    trace = commands.add_parser("trace", help="prefix hits of a trace with simulated replicas")
    trace.add_argument("--trace", type=Path, required=True, help="file in Mooncake's format")
    trace.add_argument("--replicas", type=int, default=8)
    trace.add_argument("--scale", type=float, default=1.0, help="2: twice as fast")
    trace.add_argument(
        "--cache-tokens", type=int, nargs="*", default=[4_000_000, 1_000_000], help="sizes of a replica's cache"
    )
    replica = commands.add_parser("replica", help="one of the replicas that `load` starts")
    replica.add_argument("--port", type=int, required=True)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
