"""Where the time of a step goes, by part of the model: `python -m benchmarks.step_profile --model DIR`.

Run from `runtime/`. Times the calls of each part with the wall clock, in one process, with the engine's own threads:
first while prompts are computed, then while each of them decodes. Prints Markdown.
"""

import argparse
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kvasir_runtime import cli
from kvasir_runtime.bench.cli import ENGINE_FLAGS
from kvasir_runtime.bench.scenarios import random_prompts
from kvasir_runtime.engine.engine_core import EngineCore
from kvasir_runtime.engine.messages import EngineRequest
from kvasir_runtime.sampling_params import SamplingParams


@dataclass
class Clock:
    """Seconds and calls by part."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    calls: Counter[str] = field(default_factory=Counter)

    def timed(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: object, **kwargs: object) -> object:
            start = time.perf_counter()
            result = work(*args, **kwargs)
            self.seconds[part] += time.perf_counter() - start
            self.calls[part] += 1
            return result

        return run

    def clear(self) -> None:
        self.seconds.clear()
        self.calls.clear()


def watch(core: EngineCore, clock: Clock) -> None:
    """Put the clock around the parts of a model whose layers have a gated MLP."""
    runner = core._runner  # noqa: SLF001 - nobody else needs to reach the parts of a running model
    model: Any = runner.model
    model.fused = None  # which computes all parts at once
    places: list[tuple[Any, str, str]] = [
        (model, "head", "output projection"),
        (runner.sampler, "sample", "sampling"),
        (runner, "execute", "all"),
    ]
    for name, part in {"write_kv": "RoPE and KV write", "decode": "attention", "prefill": "attention"}.items():
        places.append((model.layers[0].attention.backend, name, part))
    for layer in model.layers:
        places += [
            (layer.attention, "qkv", "q, k and v"),
            (layer.attention, "out", "attention's output"),
            (layer.mlp, "gate_up", "gate and up"),
            (layer.mlp, "down", "down"),
            (layer.attention_norm, "add_and_norm", "norms"),
            (layer.mlp_norm, "add_and_norm", "norms"),
        ]
        if layer.mlp.activate is not None:
            places.append((layer.mlp, "activate", "activation"))
    for owner, name, part in places:
        setattr(owner, name, clock.timed(part, getattr(owner, name)))


def run(core: EngineCore, count: int, length: int, output_len: int, seed: int, between: Callable[[], None]) -> None:
    """Prefill `count` prompts, then decode; `between` is called in the middle."""
    sampling = SamplingParams(temperature=0.0, max_tokens=output_len, ignore_eos=True)
    for number, prompt in enumerate(random_prompts(count, length, core.ready.vocab_size, seed)):
        core.add_request(EngineRequest(f"{seed}-{number}", prompt, sampling, time.monotonic()))
    started: set[str] = set()
    while len(started) < count:
        started |= {output.request_id for output in core.step().outputs}
    between()
    while core.has_work():
        core.step()


def table(title: str, clock: Clock, steps: float) -> str:
    """Milliseconds a step by part, the longest first; the rest is Python between the parts."""
    total = clock.seconds.pop("all")
    parts = sorted(clock.seconds.items(), key=lambda item: -item[1])
    rest = total - sum(clock.seconds.values())
    rows = [f"| {part} | {1e3 * seconds / steps:.2f} | {100 * seconds / total:.0f} |" for part, seconds in parts]
    rows.append(f"| between them | {1e3 * rest / steps:.2f} | {100 * rest / total:.0f} |")
    rows.append(f"| all | {1e3 * total / steps:.2f} | 100 |")
    return "\n".join([f"\n{title}\n", "| part | ms | % |", "|---|---|---|", *rows])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-prompts", type=int, default=16, metavar="N", help="requests (default 16)")
    parser.add_argument("--input-len", type=int, default=256, metavar="N", help="tokens in each (default 256)")
    parser.add_argument("--output-len", type=int, default=64, metavar="N", help="tokens to decode (default 64)")
    cli.add_engine_arguments(parser, only=ENGINE_FLAGS)
    namespace = parser.parse_args()
    core = EngineCore(cli.engine_config(cli.engine_args(namespace, os.environ)))
    count, length, output_len = namespace.num_prompts, namespace.input_len, namespace.output_len
    run(core, count, length, 4, 1, lambda: None)
    clock, prefill = Clock(), Clock()
    watch(core, clock)

    def between() -> None:
        prefill.seconds.update(clock.seconds)
        clock.clear()

    run(core, count, length, output_len, 2, between)
    print(table(f"Prefill of {count} x {length} tokens", prefill, 1))
    print(table(f"A decode step of {count} requests, mean of {clock.calls['all']}", clock, clock.calls["all"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
