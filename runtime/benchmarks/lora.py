"""What many adapters in one batch cost: the same load with the base model and spread over adapters, in turns.

Run from `runtime/`: `python -m benchmarks.lora [--targets 'query and value'] [--quantization int8]`. Without `--model`
it takes the checkpoint of the peers benchmark (0.3 billion parameters), made once. Adapters have random weights;
prompts are random and new in every round, so that nothing is cached. One engine in this process serves both sides;
figures are medians over the rounds, with lowest and highest. Rounds are short and many, so that what else runs on the
machine meets both sides of a pair; the share of CPU time says what it costs whatever else runs. Prints Markdown.
"""

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import kvasir_runtime.worker  # noqa: F401 - sets the environment that torch reads when it is imported

# isort: split
import torch
from safetensors.torch import save_file

from benchmarks.peers.checkpoint import ensure_checkpoint
from benchmarks.peers.shape import LLAMA_300M
from kvasir_runtime.bench.scenarios import random_prompts
from kvasir_runtime.config import AdapterConfig, CacheConfig, EngineConfig, SchedulerConfig
from kvasir_runtime.contract.memory import ModelShape
from kvasir_runtime.engine.engine_core import EngineCore
from kvasir_runtime.engine.messages import AdapterLoaded, EngineRequest, LoadAdapter
from kvasir_runtime.lora.checkpoint import AdapterLimits, check_adapter
from kvasir_runtime.lora.targets import Projection, projections
from kvasir_runtime.models.config import HFConfig
from kvasir_runtime.sampling_params import SamplingParams

TARGETS: Final = {"every linear layer": ("",), "query and value": ("q_proj", "v_proj")}
"""How the names of an adapter's layers end."""
NUM_ADAPTERS: Final = 8
RANK: Final = 16
LEAST_ROUNDS: Final = 3


@dataclass(frozen=True)
class Load:
    """Requests that are queued at once, and their tokens."""

    name: str
    requests: int
    prompt: int
    output: int


LOADS: Final = (Load("prefill and decode", 16, 32, 8), Load("decode", 8, 8, 16))


@dataclass(frozen=True)
class Speed:
    """Output tokens per second of time, and per second of this process's CPU time."""

    wall: float
    cpu: float


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    model = args.model or ensure_checkpoint(Path.home() / ".cache" / "kvasir" / "bench" / "models", LLAMA_300M)
    core = EngineCore(
        EngineConfig(
            model,
            quantization=args.quantization,
            max_model_len=512,
            cache=CacheConfig(memory=1 << 30),
            scheduler=SchedulerConfig(max_num_seqs=32),
            adapters=AdapterConfig(NUM_ADAPTERS, NUM_ADAPTERS, RANK),
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        digests = [load(core, model, Path(folder, str(number)), number, args.targets) for number in range(NUM_ADAPTERS)]
    size = core._runner.lora.nbytes if core._runner.lora is not None else 0  # noqa: SLF001 - what the report says
    print(
        f"{torch.get_num_threads()} threads; {NUM_ADAPTERS} adapters of rank {RANK}, {args.targets}: {size >> 20} MiB\n"
    )
    print("| load | base tokens/s | adapters tokens/s | share of speed | share per CPU time | rounds |")
    print("|---|---|---|---|---|---|")
    for each in LOADS if args.load is None else [load for load in LOADS if load.name == args.load]:
        print(row(each, *measure(core, each, digests, args.seconds)), flush=True)
    return 0


def load(core: EngineCore, model: Path, folder: Path, seed: int, targets: str) -> str:
    """Make an adapter, let the engine read it; returns its digest."""
    shape = ModelShape.from_hf_config(HFConfig.load(model).values)
    write_adapter(folder, projections(shape), seed, targets)
    digest = check_adapter(folder, AdapterLimits(RANK, projections(shape))).digest
    core.load_adapter(LoadAdapter(digest, str(folder)))
    while True:
        for message in core.poll():
            if isinstance(message, AdapterLoaded):
                assert not message.report, message.report
                return digest
        time.sleep(0.001)


def write_adapter(folder: Path, targets: dict[str, Projection], seed: int, which: str) -> None:
    """A PEFT checkpoint with random weights."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, size in targets.items():
        if name.endswith(TARGETS[which]):
            a = torch.randn(RANK, size.inputs, generator=generator) / size.inputs**0.5
            b = torch.randn(size.outputs, RANK, generator=generator) * 0.05
            tensors[f"base_model.model.{name}.lora_A.weight"] = a.bfloat16()
            tensors[f"base_model.model.{name}.lora_B.weight"] = b.bfloat16()
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


def measure(core: EngineCore, load: Load, digests: list[str], seconds: float) -> tuple[list[Speed], list[Speed]]:
    """Speeds of the base model and of the adapters, round by round for so long; a first round warms up."""
    sides: tuple[list[Speed], list[Speed]] = ([], [])
    end = time.monotonic() + seconds
    for number in itertools.count():
        if number > LEAST_ROUNDS and time.monotonic() > end:
            break
        order = (0, 1) if number % 2 else (1, 0)
        for side in order:
            speed = run(core, load, digests if side else [""], seed=2 * number + side)
            if number:
                sides[side].append(speed)
    return sides


def run(core: EngineCore, load: Load, digests: list[str], seed: int) -> Speed:
    """All requests at once, each with the next adapter."""
    sampling = SamplingParams(temperature=0.0, max_tokens=load.output, ignore_eos=True)
    prompts = random_prompts(load.requests, load.prompt, core.ready.vocab_size, seed)
    start, cpu_start = time.perf_counter(), time.process_time()
    for number, prompt in enumerate(prompts):
        digest = digests[number % len(digests)]
        core.add_request(EngineRequest(str(number), prompt, sampling, time.monotonic(), adapter_digest=digest))
    while core.has_work():
        core.step()
    tokens = load.requests * load.output
    return Speed(tokens / (time.perf_counter() - start), tokens / (time.process_time() - cpu_start))


def row(load: Load, base: list[Speed], adapters: list[Speed]) -> str:
    """Shares are of the same round, so that what the machine does otherwise weighs on both sides."""
    pairs = list(zip(base, adapters, strict=True))
    cells = [
        f"{load.name}: {load.requests} x {load.prompt} in, {load.output} out",
        _spread([ours.wall for ours in base]),
        _spread([theirs.wall for theirs in adapters]),
        _spread([100 * theirs.wall / ours.wall for ours, theirs in pairs]) + " %",
        _spread([100 * theirs.cpu / ours.cpu for ours, theirs in pairs]) + " %",
    ]
    return f"| {' | '.join(cells)} | {len(pairs)} |"


def _spread(values: list[float]) -> str:
    return f"{median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, metavar="DIR", help="another model than that of the peers benchmark")
    parser.add_argument("--targets", choices=list(TARGETS), default="every linear layer")
    parser.add_argument("--quantization", choices=["none", "int8"], default="none")
    parser.add_argument("--load", choices=[load.name for load in LOADS], help="only this load")
    parser.add_argument("--seconds", type=float, default=45.0, metavar="S", help="for each load (default 45)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
