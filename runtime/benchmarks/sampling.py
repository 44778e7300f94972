"""What choosing the tokens of a batch costs, by kind of request: `python -m benchmarks.sampling`.

Run from `runtime/`. One thread, timed by the CPU time it used; logits are random, of the given spread: with a small one
hundreds of tokens are nearly as likely as the first, which is the worst case of top-p. Prints Markdown.
"""

import argparse
import time
from array import array
from statistics import median
from typing import Any, Final

import numpy as np
import torch

from kvasir_runtime.core.scheduler_output import Seating
from kvasir_runtime.sampling_params import SamplingParams
from kvasir_runtime.worker.sampler import Sampler

KINDS: Final[dict[str, dict[str, Any]]] = {
    "greedy": {"temperature": 0.0},
    "logit_bias of 32": {"temperature": 0.0, "logit_bias": {7 * number: 1.0 for number in range(32)}},
    "min_tokens": {"temperature": 0.0, "min_tokens": 1000},
    "all penalties": {
        "temperature": 0.0,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.1,
    },
    "temperature": {"temperature": 0.8},
    "top_p 0.9": {"temperature": 0.8, "top_p": 0.9},
    "logprobs 5": {"temperature": 0.0, "logprobs": 5},
}
PROMPT: Final = 256
OUTPUT: Final = 64


def measure(rows: int, vocab: int, spread: float, steps: int, params: dict[str, Any]) -> float:
    """Median CPU milliseconds of a step of `rows` sequences with 256 tokens of prompt and 64 of output so far."""
    length = PROMPT + OUTPUT
    tokens_SL = np.zeros((rows, length + steps + 1), dtype=np.int32)
    tokens_SL[:, :length] = np.random.default_rng(0).integers(0, vocab, (rows, length))
    sampler = Sampler(rows, vocab, tokens_SL)
    sampling = SamplingParams(max_tokens=2000, **params)
    for seat in range(rows):
        said = array("i", tokens_SL[seat, :length].tolist())
        sampler.seat(Seating(seat, said, PROMPT, 0, sampling, seat, frozenset({2, 3})))
    logits_RV = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(0)) * spread
    seats, times = np.arange(rows), []
    for step in range(steps):
        work_RV, positions = logits_RV.clone(), np.full(rows, length + step)
        started = time.process_time()
        sampled = sampler.sample(work_RV, seats, positions)
        times.append(time.process_time() - started)
        tokens_SL[seats, positions] = sampled.tokens_R.numpy()
    return 1000 * median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU time of sampling a batch, by kind of request")
    parser.add_argument("--steps", type=int, default=12, help="steps of which the median is taken (default 12)")
    parser.add_argument("--spread", type=float, default=1.0, help="standard deviation of the logits (default 1)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    shapes = [(vocab, rows) for vocab in (32_000, 128_256) for rows in (16, 64)]
    print("| CPU ms a step | " + " | ".join(f"{rows} x {vocab:,}" for vocab, rows in shapes) + " |")
    print("|---|" + "---|" * len(shapes))
    with torch.inference_mode():
        for kind, params in KINDS.items():
            figures = [measure(rows, vocab, options.spread, options.steps, params) for vocab, rows in shapes]
            print(f"| {kind} | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |", flush=True)


if __name__ == "__main__":
    main()
