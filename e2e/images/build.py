"""Builds the images: base, settings of the machine, then one build each, with its time and size."""

import subprocess
import sys
import time
from collections import deque
from importlib import metadata
from pathlib import Path

from e2e.cluster import shell
from e2e.cluster.errors import ClusterError
from e2e.cluster.progress import Progress, Step
from e2e.images import base, builders, pip_settings

ROOT = Path(__file__).parent.parent.parent
PARTS = ("operator", "runtime")
TAIL = 40  # lines of a failed build that are shown


def image_name(part: str) -> str:
    """The full name, so that every container runtime resolves it alike."""
    return f"docker.io/kvasir/{part}:dev"


def build_images(parts: list[str], tool: str, accelerator: str, cache: Path, progress: Progress) -> builders.Name:
    """Build the parts' images from this checkout; returns the builder that has them.

    Raises:
        ClusterError: a step failed; shows the end of what it printed.
    """
    builder = builders.choose(tool)
    with progress.step(f"base image ({builder})") as step:
        base.ensure_base(builder, cache, step)
    settings = pip_settings.machine_settings()
    arguments = build_arguments(accelerator, torch_version(), local_torch=_torch_is_at_hand(accelerator))
    with pip_settings.mounts(settings) as volumes:
        if builder != "docker":
            arguments["PIP_CONFIG_FILE"] = pip_settings.CONFIG
        for part in parts:
            dockerfile = ROOT / part / "Dockerfile"
            own = {name: value for name, value in arguments.items() if f"ARG {name}" in dockerfile.read_text()}
            build = builders.Build(image_name(part), dockerfile, ROOT, own, volumes)
            with progress.step(f"image kvasir/{part}:dev") as step:
                _run(builders.build_command(builder, build), step, cache / "images" / f"{part}.log")
                step.note = size(builder, build.image)
    return builder


def build_arguments(accelerator: str, torch: str, *, local_torch: bool) -> dict[str, str]:
    """The Dockerfiles' arguments; torch comes from the machine's own pip settings where those have it."""
    arguments = {"ACCELERATOR": accelerator, "TORCH_VERSION": torch}
    return arguments | {"TORCH_INDEX_URL": ""} if local_torch else arguments


def torch_version() -> str:
    """The version that this environment tests with, without its build label (`+cpu`)."""
    return metadata.version("torch").partition("+")[0]


def size(builder: builders.Name, image: str) -> str:
    """Size of the image with all its layers, as the builder tells it."""
    form = ["images", "--format", "{{.Size}}", image]
    return shell.run([builder, *form]).strip()


def _torch_is_at_hand(accelerator: str) -> bool:
    """Whether pip, as configured here, gives the CPU build of torch by itself."""
    wanted = f"torch=={torch_version()}+cpu"
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps", "--ignore-installed", wanted]
    return accelerator == "cpu" and shell.succeeds(argv)


def _run(argv: list[str], step: Step, log: Path) -> None:
    """Run a build; its last line is shown while it works, its end when it fails, and all of it is in `log`."""
    tail: deque[str] = deque(maxlen=TAIL)
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with (
        log.open("w") as file,
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            tail.append(line.rstrip())
            file.write(f"{time.monotonic() - began:7.1f} s  {line}")
            step.update(line.strip()[:100])
    if process.returncode != 0:
        shown = "\n".join(tail)
        raise ClusterError(f"failed with status {process.returncode}: {' '.join(argv)}\n{shown}\nThe whole log: {log}")
