"""What the tiers of the KV cache are worth: how soon a prefix is back from each, what a restart leaves of the hits.

Run from `runtime/`: `python -m benchmarks.kv_tiers hit`, and `python -m benchmarks.kv_tiers replay --trace FILE`.
Without `--model` both take the checkpoint of the peers benchmark (0.3 billion parameters), made once. They print
Markdown.

`hit`: one engine in this process. Each round has a new prompt of `--tokens` tokens and a short question: computed;
asked again (device); asked again after other prompts took its blocks (host); and after memory was forgotten and the
kernel's copies of the files were dropped (disk). Time until the first token, medians with lowest and highest.

`replay`: a trace in Mooncake's form (https://github.com/kvcache-ai/Mooncake, `FAST25-release/traces`): JSON lines with
`input_length` and `hash_ids`, one for each 512 tokens. Each such block becomes `--block-tokens` tokens that depend on
its id alone, so that a prompt has the trace's prefixes at a fraction of its length. Requests go one after the other to
a `kvasir-runtime serve` over HTTP; hits are those that it reports with each answer. Between the halves of the trace the
server goes on, is stopped, is killed, or is stopped and has no files: compared are the hits of the second half.
"""

import argparse
import http.client
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import kvasir_runtime.worker  # noqa: F401 - sets the environment that torch reads when it is imported

# isort: split
from benchmarks.peers.checkpoint import ensure_checkpoint
from benchmarks.peers.shape import LLAMA_300M
from kvasir_runtime.config import CacheConfig, DiskConfig, EngineConfig, SchedulerConfig
from kvasir_runtime.engine.llm_engine import LLMEngine
from kvasir_runtime.engine.messages import CacheReset, CacheSaved, ResetCache, SaveCache
from kvasir_runtime.sampling_params import SamplingParams

QUESTION_TOKENS: Final = 8
TRACE_BLOCK: Final = 512
ONE_TOKEN: Final = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
MODELS: Final = Path.home() / ".cache" / "kvasir" / "bench" / "models"
START_TIMEOUT_S: Final = 120.0


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    model = args.model or ensure_checkpoint(MODELS, LLAMA_300M)
    folder = Path(tempfile.mkdtemp(prefix="kv-tiers-", dir=args.folder))
    try:
        print(args.run(args, model, folder))
    finally:
        shutil.rmtree(folder)
    return 0


# How soon a prefix is back


def hit(args: argparse.Namespace, model: Path, folder: Path) -> str:
    """Rounds of the same prompt from nowhere, device, host memory and disk."""
    needed = args.tokens + QUESTION_TOKENS + 64
    probe = LLMEngine(_config(model, needed, 0, 0, folder))
    token_bytes, vocab = probe.core.ready.kv_bytes_per_token, probe.core.ready.vocab_size
    del probe
    engine = LLMEngine(_config(model, needed, (needed + 512) * token_bytes, 16 * needed * token_bytes, folder))
    rng = random.Random(0)  # noqa: S311 - makes prompts, guards nothing
    times: dict[str, list[float]] = {"computed": [], "device": [], "host": [], "disk": []}
    for number in range(args.rounds + 1):
        prefix = [rng.randrange(10, vocab) for _ in range(args.tokens)]
        took = _round(engine, prefix, lambda: [rng.randrange(10, vocab) for _ in range(needed - 1)], folder)
        for tier, seconds in took.items():
            if number:  # the first one warms up
                times[tier].append(seconds)
    return _hit_table(times, args.tokens, token_bytes)


def _round(
    engine: LLMEngine, prefix: list[int], other_prompt: Callable[[], list[int]], folder: Path
) -> dict[str, float]:
    took = {"computed": _ask(engine, prefix, {}), "device": _ask(engine, prefix, {})}
    for _ in range(2):
        engine.generate([other_prompt()], ONE_TOKEN)
    took["host"] = _ask(engine, prefix, {"host": len(prefix)})
    saved = engine.core.call(SaveCache(1, 60.0))
    assert isinstance(saved, CacheSaved), saved
    assert saved.complete, saved
    reset = engine.core.call(ResetCache(2))
    assert isinstance(reset, CacheReset), reset
    _drop_from_page_cache(folder)
    took["disk"] = _ask(engine, prefix, {"disk": len(prefix)})
    return took


def _ask(engine: LLMEngine, prefix: list[int], tiers: dict[str, int]) -> float:
    """Seconds until the first token; exits where the prefix did not come from where it should."""
    before = engine.core.stats().tiers
    question = list(os.urandom(QUESTION_TOKENS))
    started = time.perf_counter()
    engine.generate([prefix + question], ONE_TOKEN)
    seconds = time.perf_counter() - started
    after = engine.core.stats().tiers
    found = {
        "host": after.host_hit_tokens - before.host_hit_tokens,
        "disk": after.disk_hit_tokens - before.disk_hit_tokens,
    }
    if {tier: count for tier, count in found.items() if count} != tiers:
        sys.exit(f"expected hits of {tiers}, got {found}")
    return seconds


def _config(model: Path, length: int, kv: int, host: int, folder: Path) -> EngineConfig:
    disk = DiskConfig(folder, 8 * host) if host else None
    cache = CacheConfig(memory=kv or None, host_memory=host, disk=disk)
    return EngineConfig(model, max_model_len=length, cache=cache, scheduler=SchedulerConfig(max_num_seqs=2))


def _drop_from_page_cache(folder: Path) -> None:
    for path in folder.rglob("*.kv"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)  # what was not written yet cannot be dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _hit_table(times: dict[str, list[float]], tokens: int, token_bytes: int) -> str:
    lines = [
        f"{tokens} tokens, {tokens * token_bytes / 1e6:.1f} MB of keys and values, {len(times['host'])} rounds",
        "",
    ]
    lines += ["| prefix | first token after, ms | times as fast as computed |", "|---|---|---|"]
    for tier, values in times.items():
        ratios = [computed / value for computed, value in zip(times["computed"], values, strict=True)]
        milliseconds = _spread([value * 1e3 for value in values], 0)
        lines.append(f"| {tier} | {milliseconds} | {_spread(ratios, 1)} |")
    return "\n".join(lines)


def _spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


# What a restart leaves


@dataclass(frozen=True)
class Variant:
    """What happens between the halves of the trace: a signal, or nothing. `files`: whether there is a disk tier."""

    name: str
    signal: int | None
    files: bool = True


VARIANTS: Final = (
    Variant("goes on", None),
    Variant("stopped and started", signal.SIGTERM),
    Variant("killed and started", signal.SIGKILL),
    Variant("stopped and started, no files", signal.SIGTERM, files=False),
)


def replay(args: argparse.Namespace, model: Path, folder: Path) -> str:
    """Hits of the trace's second half, by what happened before it."""
    vocab = json.loads((model / "config.json").read_text())["vocab_size"]
    prompts = read_trace(args.trace, args.requests, args.block_tokens, args.max_len, vocab)
    half = len(prompts) // 2
    total = sum(map(len, prompts[half:]))
    tokens = f"{sum(map(len, prompts))} prompt tokens, {total} of them in the second half"
    lines = [
        f"{len(prompts)} requests, {tokens}; KV cache {args.kv}, host memory {args.host}, files {args.disk}",
        "",
        "| between the halves the server | hits in the second half | share of prompt tokens | remaining | by tier |",
        "|---|---|---|---|---|",
    ]
    whole = 0  # hits without a restart
    for variant in VARIANTS:
        found = _replay(variant, prompts, half, args, model, folder / variant.name.replace(" ", "-"))
        hits = sum(found.values())
        whole = whole or hits
        tiers = ", ".join(f"{tier} {tokens}" for tier, tokens in found.items())
        lines.append(f"| {variant.name} | {hits} | {hits / total:.1%} | {hits / whole:.1%} | {tiers} |")
        print(lines[-1], file=sys.stderr)
    return "\n".join(lines)


def read_trace(path: Path, requests: int, block_tokens: int, max_len: int, vocab: int) -> list[list[int]]:
    """Prompts of the first `requests` lines that fit into `max_len` tokens."""
    prompts = []
    with path.open() as lines:
        for number, line in enumerate(lines):
            entry = json.loads(line)
            tokens = [token for block in entry["hash_ids"] for token in _tokens(f"block {block}", block_tokens, vocab)]
            length = max(1, entry["input_length"] * block_tokens // TRACE_BLOCK)
            prompt = tokens[:length] + _tokens(f"question {number}", 1, vocab)
            if len(prompt) <= max_len:
                prompts.append(prompt)
            if len(prompts) == requests:
                break
    return prompts


def _tokens(name: str, count: int, vocab: int) -> list[int]:
    rng = random.Random(name)  # noqa: S311 - makes prompts, guards nothing
    return [rng.randrange(10, vocab) for _ in range(count)]


def _replay(
    variant: Variant, prompts: list[list[int]], half: int, args: argparse.Namespace, model: Path, folder: Path
) -> dict[str, int]:
    flags = ["--max-model-len", str(args.max_len + 1), "--kv-cache-memory", args.kv, "--kv-offload-host", args.host]
    if variant.files:
        flags += ["--kv-offload-disk", f"{folder}:{args.disk}"]
    if variant.signal is None:
        with _server(model, flags) as server:
            server.ask_all(prompts[:half])
            return server.ask_all(prompts[half:])
    with _server(model, flags, variant.signal) as server:
        server.ask_all(prompts[:half])
    with _server(model, flags) as server:
        return server.ask_all(prompts[half:])


@dataclass
class _Server:
    port: int

    def ask_all(self, prompts: Sequence[list[int]]) -> dict[str, int]:
        """Hits by tier."""
        found = {"device": 0, "host": 0, "disk": 0}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        for prompt in prompts:
            body = json.dumps({"prompt": prompt, "max_tokens": 1, "ignore_eos": True, "temperature": 0})
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            reply = json.loads(connection.getresponse().read())
            details = reply["usage"]["prompt_tokens_details"]
            tiers = details.get("cached_tokens_by_tier", {})
            for tier, tokens in tiers.items():
                found[tier] += tokens
            found["device"] += details["cached_tokens"] - sum(tiers.values())
        connection.close()
        return found


@contextmanager
def _server(model: Path, flags: Sequence[str], end: int = signal.SIGTERM) -> Iterator[_Server]:
    """A server that is ready; it is ended by the signal `end`."""
    port, admin_port = _free_ports(2)
    command = [sys.executable, "-m", "kvasir_runtime", "serve", "--model", str(model), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--admin-port", str(admin_port), "--log-level", "warning", *flags]
    process = subprocess.Popen(command)
    try:
        _wait_ready(process, port)
        yield _Server(port)
    finally:
        process.send_signal(end)
        process.wait()


def _wait_ready(process: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        except OSError:
            pass  # not listening yet
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit("the server did not start")
        time.sleep(0.05)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


def _arguments(argv: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    hits = commands.add_parser("hit", help="how soon a prefix is back from each tier")
    hits.set_defaults(run=hit)
    hits.add_argument("--tokens", type=int, default=1008, help="of the prefix, whole blocks of 16 (default: 1008)")
    hits.add_argument("--rounds", type=int, default=10, help="prompts (default: 10)")
    traces = commands.add_parser("replay", help="what a restart leaves of the hits")
    traces.set_defaults(run=replay)
    traces.add_argument("--trace", type=Path, required=True, help="a trace in Mooncake's form")
    traces.add_argument("--requests", type=int, default=200, help="of the trace's first ones (default: 200)")
    traces.add_argument("--block-tokens", type=int, default=16, help="tokens for each 512 of the trace (default: 16)")
    traces.add_argument("--max-len", type=int, default=2048, help="longer prompts are left out (default: 2048)")
    traces.add_argument("--kv", default="256Mi", help="of the device's KV cache (default: 256Mi)")
    traces.add_argument("--host", default="512Mi", help="of host memory (default: 512Mi)")
    traces.add_argument("--disk", default="4Gi", help="of files (default: 4Gi)")
    for each in (hits, traces):
        each.add_argument("--model", type=Path, help="folder of a model (default: the peers benchmark's)")
        each.add_argument("--folder", type=Path, help="where the files are (default: the system's temporary folder)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
