"""What structured output costs a decode: `python -m benchmarks.structured_decode --model DIR`.

Run from `runtime/`. The same prompts are continued freely, and held to a regular expression and to a schema of which
neither ends before the last token; the kinds take turns. Each run's grammar is new, so that its compilation counts.
One compute thread, timed by the CPU time that the process uses: what else runs on the machine takes the core away but
changes the figures less. Prints Markdown.
"""

import argparse
import json
import random
import time
from pathlib import Path
from statistics import median
from typing import Final

import kvasir_runtime.worker  # noqa: F401 - sets the environment that torch reads when it is imported
from kvasir_runtime.config import CacheConfig, EngineConfig, SchedulerConfig
from kvasir_runtime.engine.llm_engine import LLMEngine
from kvasir_runtime.sampling_params import SamplingParams
from kvasir_runtime.structured.constraint import Constraint

KINDS: Final = ("free", "regular expression", "schema")


def constraint(kind: str, number: int) -> Constraint | None:
    """One that was not compiled before; `number` makes the difference."""
    if kind == "free":
        return None
    if kind == "regular expression":
        return Constraint("regex", f"[a-zA-Z0-9 ,.!?]{{{10_000 + number}}}")
    fields = {
        "id": {"type": "integer"},
        "name": {"type": "string", "maxLength": 40},
        "tags": {"enum": ["a", "b", None]},
    }
    item = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
    return Constraint("json_schema", json.dumps({"type": "array", "items": item, "minItems": 5_000 + number}))


def run(engine: LLMEngine, kind: str, number: int, batch: int, tokens: int) -> float:
    """Output tokens a second of CPU time."""
    chance = random.Random(number)  # noqa: S311 - picks prompts
    vocabulary = engine.core.ready.vocab_size
    prompts = [[chance.randrange(300, vocabulary) for _ in range(16)] for _ in range(batch)]
    sampling = SamplingParams(max_tokens=tokens, ignore_eos=True, seed=number, constraint=constraint(kind, number))
    start = time.process_time()
    done = engine.generate(prompts, sampling)
    seconds = time.process_time() - start
    produced = sum(len(one.token_ids) for group in done for one in group)
    assert produced == batch * tokens, produced
    return produced / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a model in Hugging Face layout")
    parser.add_argument("--batch", type=int, default=8, help="sequences at the same time (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="output tokens of each (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each kind (default: %(default)s)")
    options = parser.parse_args()
    scheduler = SchedulerConfig(max_num_seqs=options.batch)
    cache = CacheConfig(memory=256 << 20)
    engine = LLMEngine(EngineConfig(options.model, num_threads=1, cache=cache, scheduler=scheduler))
    for kind in KINDS:
        run(engine, kind, 0, options.batch, 8)
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(1, options.rounds + 1):
        for kind in KINDS:
            rates[kind].append(run(engine, kind, number, options.batch, options.tokens))
    print(
        f"Vocabulary of {engine.core.ready.vocab_size:,}; {options.batch} sequences of {options.tokens} tokens each.\n"
    )
    print("| output | tokens a CPU second, median | lowest | highest | of free |\n|---|---|---|---|---|")
    for kind, values in rates.items():
        share = median(values) / median(rates["free"])
        print(f"| {kind} | {median(values):.1f} | {min(values):.1f} | {max(values):.1f} | {share:.1%} |")


if __name__ == "__main__":
    main()
