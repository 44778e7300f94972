"""How true the simulator's model of a replica is: the same requests, to the real server and to the model.

Starts `kvasir-runtime serve`, measures how long its steps take (the profile), then sends Poisson arrivals at three
loads and compares TTFT and throughput with `kvasir_operator.scaling.simulator.replica`. The requests of a load are none
that the profile was made from. Each load is sent several times, and medians are taken, since other processes of the
machine disturb some. Exit status 1 if a median TTFT or a throughput is off by more than `--within`. Example:

    python runtime/benchmarks/replica_model.py --model tests/models/tiny-llama --seconds 15
"""

import argparse
import asyncio
import json
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import mean, median

import numpy as np

from benchmarks import serve_load
from kvasir_operator.scaling.simulator.profiles import write_profile
from kvasir_operator.scaling.simulator.replica import Profile, Replica
from kvasir_operator.scaling.simulator.traces import Request

LOADS = (0.3, 0.55, 0.8)
"""Shares of the rate that the model says is the most the server can bear."""
VOCABULARY = 2_000
KV_TOKENS = 32_768
MAX_SEQS = 64
MAX_BATCHED_TOKENS = 2_048
CALIBRATION_ROUNDS = 9
PAUSE_S = 0.1
ROUNDS = 3


@dataclass(frozen=True)
class Timed:
    """One request as it went: seconds from its sending to its first and last token."""

    request: Request
    first: float
    last: float
    done_at: float


@dataclass(frozen=True)
class Measured:
    """What a load came to: seconds, and output tokens a second."""

    ttft_mean: float
    ttft_p50: float
    tokens_per_s: float


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    flags = ["--kv-cache-memory", "64Mi", "--max-num-seqs", str(MAX_SEQS), "--max-model-len", "2048"]
    flags += ["--max-num-batched-tokens", str(MAX_BATCHED_TOKENS), *args.server_args]
    server = serve_load.start(args.model, flags)
    try:
        profile, overhead = asyncio.run(calibrate(server.port))
        print(f"profile: {profile}\nfront end: {overhead * 1000:.2f} ms a request", flush=True)
        if args.profile is not None:
            write_profile(profile, args.profile)
        rows = [compare(server.port, profile, overhead, share, args.seconds) for share in LOADS]
    finally:
        server.process.send_signal(signal.SIGTERM)
        server.process.wait()
    return report(rows, args.within)


async def calibrate(port: int) -> tuple[Profile, float]:
    """The profile of this server, and the seconds that a request spends outside its steps.

    Prompts of several lengths give what a step and a prompt token take, streams side by side what a sequence that
    decodes adds, and long contexts what reading a token of KV takes. Medians of several rounds, least squares.
    """
    await _ask(port, Request(0.0, 64, 32))
    lengths = (64, 128, 256, 512, 1024)
    firsts = [await _first_token(port, length) for length in lengths]
    prefill, first_step = np.polyfit(lengths, firsts, 1)
    rows, seconds = [], []
    for count, context in ((1, 32), (1, 1024), (4, 32), (8, 32), (16, 32), (16, 512), (32, 32)):
        step = await _decode_step(port, count, context)
        rows.append((1.0, float(count), float(count * (context + 32))))
        seconds.append(step)
    step_s, decode_s, kv_s = np.linalg.lstsq(np.array(rows), np.array(seconds), rcond=None)[0]
    profile = Profile(
        step_s=max(1e-6, float(step_s)),
        prefill_s=max(1e-9, float(prefill)),
        decode_s=max(0.0, float(decode_s)),
        kv_s=max(0.0, float(kv_s)),
        kv_tokens=KV_TOKENS,
        max_seqs=MAX_SEQS,
        max_batched_tokens=MAX_BATCHED_TOKENS,
    )
    return profile, max(0.0, float(first_step) - profile.step_s)


async def _first_token(port: int, length: int) -> float:
    """Seconds to the first token of a prompt that finds the server idle, as one does that comes after a pause."""
    found = []
    for _ in range(CALIBRATION_ROUNDS):
        await asyncio.sleep(PAUSE_S)
        found.append((await _ask(port, Request(0.0, length, 1))).first)
    return median(found)


async def _decode_step(port: int, count: int, context: int) -> float:
    """Seconds of a step in which so many sequences decode, from the middle of their answers."""
    steps = []
    for _ in range(3):
        timed = await asyncio.gather(*(_ask(port, Request(0.0, context, 64)) for _ in range(count)))
        begin, end = max(each.first for each in timed), min(each.last for each in timed)
        latest = max(timed, key=lambda each: each.first)
        steps.append((latest.last - latest.first) / 63 if end > begin else mean(each.last / 64 for each in timed))
    return median(steps)


def compare(
    port: int, profile: Profile, overhead: float, share: float, seconds: float
) -> tuple[float, Measured, Measured]:
    """One load on both: requests a second, what the server did, what the model says."""
    rate = share * most_per_second(profile)
    requests = arrivals(rate, seconds, seed=int(share * 100))
    rounds = [asyncio.run(_replay(port, requests)) for _ in range(ROUNDS + 1)][1:]  # the first one warms up
    fields = zip(*map(astuple, rounds), strict=True)
    return rate, Measured(*map(median, fields)), simulate(profile, overhead, requests)


def most_per_second(profile: Profile) -> float:
    """Requests of mean size a second at which the model is busy all the time, with 16 at a time."""
    prompt, output = 145.0, 64.0
    step = profile.step_s + profile.decode_s * 16 + profile.kv_s * 16 * (prompt + output / 2)
    return 1 / (profile.prefill_s * prompt + output * step / 16)


def arrivals(rate: float, seconds: float, seed: int) -> list[Request]:
    """Poisson arrivals of mixed requests."""
    draw = random.Random(seed)  # noqa: S311 - draws requests, guards nothing
    now, found = 0.0, []
    while (now := now + draw.expovariate(rate)) < seconds:
        found.append(Request(now, _prompt(draw), draw.randint(16, 112)))
    return found


def _prompt(draw: random.Random) -> int:
    return int(min(1200, max(16, draw.lognormvariate(4.6, 0.9))))


def simulate(profile: Profile, overhead: float, requests: Sequence[Request]) -> Measured:
    """What the model makes of them."""
    replica = Replica("model", profile, 0.0, 0.0)
    sequences = []
    for request in requests:
        replica.advance(request.arrival)
        sequences.append(replica.add(request))
    ends = []
    while not replica.idle:
        before = replica.now
        replica.advance(before + profile.step_s)
        if replica.finished == len(requests):
            ends.append(replica.now)
    firsts = [
        each.first_token_at - each.request.arrival + overhead for each in sequences if each.first_token_at is not None
    ]
    tokens = sum(request.output for request in requests)
    return Measured(mean(firsts), median(firsts), tokens / (ends[0] - requests[0].arrival))


async def _replay(port: int, requests: Sequence[Request]) -> Measured:
    begin = time.monotonic()

    async def later(request: Request) -> Timed:
        await asyncio.sleep(max(0.0, begin + request.arrival - time.monotonic()))
        return await _ask(port, request)

    timed = await asyncio.gather(*(later(request) for request in requests))
    tokens = sum(each.request.output for each in timed)
    span = max(each.done_at for each in timed) - begin - requests[0].arrival
    return Measured(mean(each.first for each in timed), median(each.first for each in timed), tokens / span)


async def _ask(port: int, request: Request) -> Timed:
    """Send one request of random tokens, so that no prefix is known, and read its stream."""
    tokens = [random.randrange(16, VOCABULARY) for _ in range(request.prompt)]  # noqa: S311 - guards nothing
    fields = {"prompt": tokens, "max_tokens": request.output, "stream": True, "ignore_eos": True, "temperature": 0}
    body = json.dumps(fields).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    started = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
    first = last = 0.0
    status = await reader.readline()
    if b" 200 " not in status:
        raise RuntimeError(f"the server refused a request: {status!r} {(await reader.read(500))!r}")
    while line := await reader.readline():
        if b'"text"' in line:
            last = time.monotonic() - started
            first = first or last
    writer.close()
    return Timed(request, first, last, time.monotonic())


def report(rows: Sequence[tuple[float, Measured, Measured]], within: float) -> int:
    """Print a table; 1 if a median TTFT or a throughput is further off than `within`."""
    print(
        "| requests/s | TTFT mean, real / model | off | TTFT p50, real / model | off | tokens/s, real / model | off |"
    )
    print("|---|---|---|---|---|---|---|")
    worst = 0.0
    for rate, real, model in rows:
        cells = [f"{rate:.1f}"]
        for name, unit, scale in (("ttft_mean", "ms", 1000), ("ttft_p50", "ms", 1000), ("tokens_per_s", "", 1)):
            measured, modelled = getattr(real, name), getattr(model, name)
            off = modelled / measured - 1
            worst = max(worst, abs(off)) if name != "ttft_mean" else worst
            cells += [f"{measured * scale:.1f} / {modelled * scale:.1f} {unit}".strip(), f"{off:+.0%}"]
        print(f"| {' | '.join(cells)} |")
    print(f"furthest off: {worst:.0%}, allowed {within:.0%}")
    return 1 if worst > within else 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the model")
    parser.add_argument("--seconds", type=float, default=15.0, help="length of each load (default: %(default)s)")
    parser.add_argument("--within", type=float, default=0.2, help="allowed difference (default: %(default)s)")
    parser.add_argument("--profile", type=Path, help="write the profile here, for the simulator's --profile")
    parser.add_argument("server_args", nargs="*", help="further flags of the server, after --")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
