"""Who is measured, and how each is started in its best configuration on a CPU."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.peers import environments
from benchmarks.peers.environments import Environment

KVASIR: Final = "kvasir"
MACHINE: Final = "machine"


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
    note: str = ""


BF16_SCENARIOS: Final = {"throughput": "throughput", "latency": "latency", "prefix": "prefix"}
INT8_SCENARIOS: Final = {"int8": "latency"}


def subjects(threads: int, cache: Path) -> tuple[Subject, ...]:
    """All subjects, in the order in which each round runs them."""
    last = threads - 1
    vllm_variables = {
        # By default one core is left to the front end; on few cores computing on all of them is much faster.
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{last}" if last else "0",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CACHE_ROOT": str(cache / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    omp = {"OMP_NUM_THREADS": str(threads)}
    llama_worker = "benchmarks.peers.workers.llamacpp_engine"
    return (
        Subject(KVASIR, KVASIR, "bf16", BF16_SCENARIOS),
        Subject(
            "vllm",
            "vllm",
            "bf16",
            BF16_SCENARIOS,
            environments.VLLM,
            "benchmarks.peers.workers.vllm_engine",
            variables=vllm_variables,
        ),
        Subject(
            "transformers",
            "transformers",
            "bf16",
            BF16_SCENARIOS,
            environments.TRANSFORMERS,
            "benchmarks.peers.workers.transformers_engine",
            variables=omp,
            note="batched `generate`; it keeps nothing between calls, so a repeated prompt is computed again",
        ),
        Subject(
            "llamacpp",
            "llamacpp",
            "bf16",
            BF16_SCENARIOS,
            environments.LLAMACPP,
            llama_worker,
            gguf="BF16",
            variables=omp,
            note="shared batches over all slots; a repeated prompt is found in its own slot only",
        ),
        Subject("kvasir int8", KVASIR, "int8", INT8_SCENARIOS),
        Subject("llamacpp Q8_0", "llamacpp", "Q8_0", INT8_SCENARIOS, environments.LLAMACPP, llama_worker, "Q8_0", omp),
    )


def base_variables(runtime: Path) -> dict[str, str]:
    """The environment of every process: offline, nothing from the user's own Python settings, this source first."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KVASIR_", "PYTHON", "OMP_"))}
    return {**kept, "PYTHONPATH": str(runtime), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def kvasir_program() -> list[str]:
    """Kvasir's own command line, from the environment that runs this program."""
    return [sys.executable, "-m", "kvasir_runtime"]
