"""`kvasir-runtime bench throughput|latency|prefix`: flags, prompts, and the table or JSON that is printed."""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from kvasir_runtime import cli
from kvasir_runtime.bench.scenarios import SCENARIOS, TokenIds, random_prompts, report, run_pass
from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.engine.engine_core import EngineCore

ENGINE_FLAGS: Final = (
    *("model", "dtype", "quantization", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "block_size"),
    *("kv_cache_memory", "gpu_memory_utilization", "enable_prefix_caching", "num_threads", "device"),
)
_LABELS: Final = {
    "elapsed_s": "time",
    "requests_per_s": "requests/s",
    "output_tokens_per_s": "output tokens/s",
    "total_tokens_per_s": "tokens/s, prompts included",
    "first_token_median_s": "first token, median",
    "first_token_s": "first token",
    "token_s": "each further token",
    "first_pass_s": "all first tokens",
    "second_pass_s": "the same prompts again",
    "speedup": "times sooner",
    "hit_tokens": "prompt tokens taken from the cache",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scenario", choices=SCENARIOS, help="all prompts at once; one after the other; all, twice")
    parser.add_argument("--input-len", type=int, default=256, metavar="N", help="tokens in each prompt (default 256)")
    parser.add_argument("--output-len", type=int, default=64, metavar="N", help="tokens to produce (default 64)")
    parser.add_argument("--num-prompts", type=int, default=16, metavar="N", help="prompts (default 16)")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="JSON list of lists of token ids, not random ones")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of random prompts (default 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object, the tokens included")
    cli.add_engine_arguments(parser, only=ENGINE_FLAGS)


def run(namespace: argparse.Namespace) -> int:
    """Load the model, warm up with other prompts of the same shape, measure, print."""
    for name in ("input_len", "output_len", "num_prompts"):
        if getattr(namespace, name) < 1:
            flag = "--" + name.replace("_", "-")
            raise KvasirError(Cause.INVALID_ARGUMENTS, f"{flag} must be at least 1, got {getattr(namespace, name)}")
    engine = vars(namespace).copy()
    seed = engine.pop("seed")  # of the prompts, not of the engine
    config = cli.engine_config(cli.engine_args(argparse.Namespace(**engine), os.environ))
    prompts = None if namespace.prompts is None else read_prompts(namespace.prompts)
    core = EngineCore(replace(config, seed=seed))
    vocab = core.ready.vocab_size
    if prompts is None:
        prompts = random_prompts(namespace.num_prompts, namespace.input_len, vocab, seed)
    warmup = [random_prompts(1, len(prompt), vocab, seed + 1 + number)[0] for number, prompt in enumerate(prompts)]
    batch = warmup if namespace.scenario != "latency" else warmup[:1]
    try:
        run_pass(core, batch, min(4, namespace.output_len))
        result = report(SCENARIOS[namespace.scenario](core, prompts, namespace.output_len))
    except ValueError as error:
        raise KvasirError(
            Cause.INVALID_ARGUMENTS, str(error), "change --input-len, --output-len or --prompts"
        ) from error
    if namespace.json:
        print(json.dumps({"scenario": namespace.scenario, **result, "engine": _engine(core)}))
    else:
        print(table(namespace.scenario, prompts, namespace.output_len, result))
    return 0


def read_prompts(path: Path) -> list[TokenIds]:
    """Raises KvasirError(InvalidArguments) that says what is wrong with the file."""
    try:
        prompts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KvasirError(Cause.INVALID_ARGUMENTS, f"--prompts {path} cannot be read: {error}") from error
    lists = isinstance(prompts, list) and prompts and all(isinstance(prompt, list) and prompt for prompt in prompts)
    if not lists or not all(isinstance(token, int) for prompt in prompts for token in prompt):
        raise KvasirError(
            Cause.INVALID_ARGUMENTS, f"--prompts {path} must hold a JSON list of lists of token ids, none empty"
        )
    return list(prompts)


def table(scenario: str, prompts: list[TokenIds], output_len: int, result: dict[str, Any]) -> str:
    """The numbers for people."""
    lengths = sorted({len(prompt) for prompt in prompts})
    sizes = str(lengths[0]) if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
    lines = [f"{scenario}: {len(prompts)} prompts of {sizes} tokens, {output_len} tokens out"]
    lines += [f"  {_LABELS[key]:<36}{_show(key, value)}" for key, value in result.items() if key in _LABELS]
    return "\n".join(lines)


def _show(key: str, value: float) -> str:
    if not key.endswith("_s") or key.endswith("_per_s"):
        return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"


def _engine(core: EngineCore) -> dict[str, Any]:
    ready = core.ready
    return {
        "dtype": ready.dtype,
        "num_blocks": ready.num_blocks,
        "block_size": ready.block_size,
        "weights_bytes": ready.weights_bytes,
        "startup_seconds": ready.startup_seconds,
    }
