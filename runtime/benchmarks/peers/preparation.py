"""Everything that must be there before the first round: checkpoint, environments, GGUF files. All cached."""

import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.checkpoint import ensure_checkpoint
from benchmarks.peers.environments import LLAMACPP, TRANSFORMERS, ensure_environment, python_of
from benchmarks.peers.errors import BenchmarkError
from benchmarks.peers.shape import LlamaShape
from benchmarks.peers.subjects import Subject, base_variables

Say = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """Where things are: `pythons` by environment name, `ggufs` by type."""

    model: Path
    pythons: dict[str, Path]
    ggufs: dict[str, Path]


def prepare(subjects: Iterable[Subject], shape: LlamaShape, cache: Path, runtime: Path, say: Say) -> Prepared:
    """Make what the subjects need and is not there yet."""
    chosen = list(subjects)
    say("checkpoint: random weights of a fixed seed, made once")
    model = ensure_checkpoint(cache / "models", shape)
    # transformers is always there: it judges everybody's outputs in float32.
    wanted = {subject.environment.name: subject.environment for subject in chosen if subject.environment}
    wanted[TRANSFORMERS.name] = TRANSFORMERS
    pythons = {name: python_of(ensure_environment(environment, cache, say)) for name, environment in wanted.items()}
    types = sorted({subject.gguf for subject in chosen if subject.gguf})
    ggufs = {kind: _ensure_gguf(model, kind, pythons[LLAMACPP.name], runtime, say) for kind in types}
    return Prepared(model, pythons, ggufs)


def _ensure_gguf(model: Path, kind: str, python: Path, runtime: Path, say: Say) -> Path:
    target = model.with_name(f"{model.name}-{kind}.gguf")
    if not target.exists():
        say(f"llamacpp: writing {target.name}")
        command = [str(python), "-m", "benchmarks.peers.workers.export_gguf", str(model), str(target), "--type", kind]
        done = subprocess.run(command, env=base_variables(runtime), capture_output=True, text=True, check=False)
        if done.returncode:
            msg = f"writing {target} failed with status {done.returncode}:\n{done.stderr[-2000:]}"
            raise BenchmarkError(msg)
    return target
