"""What is measured, and how. Times are wall-clock seconds; the engine is driven in this process."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Final

from kvasir_runtime.engine.engine_core import EngineCore
from kvasir_runtime.engine.messages import EngineRequest
from kvasir_runtime.sampling_params import SamplingParams

TokenIds = list[int]


@dataclass(frozen=True)
class Pass:
    """One batch of greedy requests, all queued at once.

    `first_token_s` and `finished_s` are per request, from the start of the pass; `outputs` are its tokens.
    """

    elapsed_s: float
    first_token_s: list[float]
    finished_s: list[float]
    outputs: list[TokenIds]


@dataclass(frozen=True)
class Throughput:
    """All prompts at once."""

    elapsed_s: float
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    first_token_median_s: float
    outputs: list[TokenIds]


@dataclass(frozen=True)
class Latency:
    """One prompt after the other: medians over the prompts; `outputs` of all."""

    first_token_s: float
    elapsed_s: float
    token_s: float
    outputs: list[TokenIds]


@dataclass(frozen=True)
class Prefix:
    """The same prompts twice: until all first tokens are there."""

    first_pass_s: float
    second_pass_s: float
    speedup: float
    hit_tokens: int
    outputs: list[TokenIds]


def random_prompts(count: int, length: int, vocab_size: int, seed: int) -> list[TokenIds]:
    """`count` prompts of `length` ordinary tokens; equal arguments give equal prompts."""
    source = random.Random(seed)  # noqa: S311 - not a secret
    first = min(2, vocab_size - 1)  # the lowest ids are usually special tokens
    return [[source.randrange(first, vocab_size) for _ in range(length)] for _ in range(count)]


def run_pass(core: EngineCore, prompts: Sequence[TokenIds], output_len: int) -> Pass:
    """Queue all prompts and step until they are done; end-of-sequence tokens are ignored."""
    sampling = SamplingParams(temperature=0.0, max_tokens=output_len, ignore_eos=True)
    start = time.perf_counter()
    for number, prompt in enumerate(prompts):
        core.add_request(EngineRequest(str(number), prompt, sampling, time.monotonic()))
    first, finished = [0.0] * len(prompts), [0.0] * len(prompts)
    outputs: list[TokenIds] = [[] for _ in prompts]
    while core.has_work():
        step = core.step()
        now = time.perf_counter() - start
        for output in step.outputs:
            number = int(output.request_id)
            if not outputs[number]:
                first[number] = now
            outputs[number] += output.new_token_ids
            finished[number] = now
    return Pass(time.perf_counter() - start, first, finished, outputs)


def throughput(core: EngineCore, prompts: Sequence[TokenIds], output_len: int) -> Throughput:
    done = run_pass(core, prompts, output_len)
    produced = sum(map(len, done.outputs))
    return Throughput(
        elapsed_s=done.elapsed_s,
        requests_per_s=len(prompts) / done.elapsed_s,
        output_tokens_per_s=produced / done.elapsed_s,
        total_tokens_per_s=(produced + sum(map(len, prompts))) / done.elapsed_s,
        first_token_median_s=median(done.first_token_s),
        outputs=done.outputs,
    )


def latency(core: EngineCore, prompts: Sequence[TokenIds], output_len: int) -> Latency:
    passes = [run_pass(core, [prompt], output_len) for prompt in prompts]
    return Latency(
        first_token_s=median(done.first_token_s[0] for done in passes),
        elapsed_s=median(done.elapsed_s for done in passes),
        token_s=median((done.elapsed_s - done.first_token_s[0]) / max(1, output_len - 1) for done in passes),
        outputs=[done.outputs[0] for done in passes],
    )


def prefix(core: EngineCore, prompts: Sequence[TokenIds], output_len: int) -> Prefix:
    first = run_pass(core, prompts, output_len)
    hits_before = core.stats().prefix_hit_tokens
    second = run_pass(core, prompts, output_len)
    first_s, second_s = max(first.first_token_s), max(second.first_token_s)
    return Prefix(
        first_pass_s=first_s,
        second_pass_s=second_s,
        speedup=first_s / second_s,
        hit_tokens=core.stats().prefix_hit_tokens - hits_before,
        outputs=first.outputs,
    )


SCENARIOS: Final[dict[str, Callable[[EngineCore, Sequence[TokenIds], int], Throughput | Latency | Prefix]]] = {
    "throughput": throughput,
    "latency": latency,
    "prefix": prefix,
}


def report(result: Throughput | Latency | Prefix) -> dict[str, Any]:
    """The result as JSON holds it."""
    return asdict(result)
