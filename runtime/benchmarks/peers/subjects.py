"""Who is measured, and how each is started in its best configuration on a CPU."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.peers import environments
from benchmarks.peers.environments import Environment

KVASIR: Final = "kvasir"
VLLM_ZEN: Final = "vllm zentorch"
WORKERS: Final = "benchmarks.peers.workers"


@dataclass(frozen=True)
class Subject:
    """An engine with one kind of weights. `scenarios` maps what a user asks for to what its processes measure."""

    name: str
    peer: str
    weights: str
    scenarios: Mapping[str, str]
    environment: Environment | None = None
    worker: str = ""
    gguf: str = ""
    """Type of the GGUF file it reads; empty for the checkpoint itself."""
    variables: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    overlay: bool = False
    """Whether its processes see what the environment keeps in its overlay."""
    note: str = ""


BF16_SCENARIOS: Final = {"throughput": "throughput", "latency": "latency", "prefix": "prefix"}
INT8_SCENARIOS: Final = {"int8": "latency"}


def subjects(threads: int, cache: Path, *, zen: bool) -> tuple[Subject, ...]:
    """All subjects, in the order in which each round runs them; `zen`: the CPU is one that zentorch has kernels for."""
    omp = {"OMP_NUM_THREADS": str(threads)}
    library = Subject("", "", "bf16", BF16_SCENARIOS, variables=omp)
    vllm = replace(
        library,
        name="vllm",
        peer="vllm",
        environment=environments.VLLM,
        worker=f"{WORKERS}.vllm_engine",
        variables=_vllm_variables(threads, cache),
        note="its blocks hold 128 tokens on a CPU, so of a repeated prompt of 256 the second half is computed again",
    )
    transformers = replace(
        library,
        name="transformers",
        peer="transformers",
        environment=environments.TRANSFORMERS,
        worker=f"{WORKERS}.transformers_engine",
        note="batched `generate`; it keeps nothing between calls, so a repeated prompt is computed again",
    )
    llamacpp = replace(
        library,
        name="llamacpp",
        peer="llamacpp",
        environment=environments.LLAMACPP,
        worker=f"{WORKERS}.llamacpp_engine",
        gguf="BF16",
        note="shared batches over all slots; a repeated prompt is found in its own slot only",
    )
    return (
        Subject(KVASIR, KVASIR, "bf16", BF16_SCENARIOS),
        vllm,
        *([replace(vllm, name=VLLM_ZEN, overlay=True, note="with AMD's kernels instead of oneDNN's")] if zen else []),
        transformers,
        llamacpp,
        Subject("kvasir int8", KVASIR, "int8", INT8_SCENARIOS),
        replace(llamacpp, name="llamacpp Q8_0", weights="Q8_0", scenarios=INT8_SCENARIOS, gguf="Q8_0", note=""),
    )


def _vllm_variables(threads: int, cache: Path) -> dict[str, str]:
    return {
        # By default one core is left to the front end; on few cores computing on all of them is much faster.
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}" if threads > 1 else "0",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CACHE_ROOT": str(cache / "vllm"),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }


def base_variables(runtime: Path) -> dict[str, str]:
    """The environment of every process: offline, nothing from the user's own Python settings, this source first."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KVASIR_", "PYTHON", "OMP_"))}
    return {**kept, "PYTHONPATH": str(runtime), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def kvasir_program() -> list[str]:
    """Kvasir's own command line, from the environment that runs this program."""
    return [sys.executable, "-m", "kvasir_runtime"]
