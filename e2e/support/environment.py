"""The cluster that tests and demo work on, with Kvasir's images in it."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from e2e.support.kubectl import Kubectl

ROOT = Path(__file__).parent.parent.parent
IMAGES = ("operator", "runtime")
CONTEXT_VARIABLE = "KVASIR_E2E_USE_CONTEXT"


@dataclass(frozen=True)
class Environment:
    """A cluster that answers. `own` says that it runs on this machine, made by `e2e.cluster`."""

    kubectl: Kubectl
    own: bool


def program(module: str, *args: str) -> None:
    """Run one of our programs with its output shown; CalledProcessError if it fails."""
    subprocess.run([sys.executable, "-m", module, *args], cwd=ROOT, check=True)


def image_name(part: str) -> str:
    return f"docker.io/kvasir/{part}:dev"


def ensure_cluster() -> Environment:
    """Make the cluster unless it is up, or take the one that the environment names."""
    program("e2e.cluster", "up")
    shown = subprocess.run(
        [sys.executable, "-m", "e2e.cluster", "kubeconfig"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    context = os.environ.get(CONTEXT_VARIABLE)
    return Environment(Kubectl(Path(shown.stdout.strip()), context), own=context is None)


def ensure_images() -> None:
    """Build the images from this checkout and bring them to the node; both are quick when nothing changed."""
    program("e2e.images", "build", *IMAGES)
    for part in IMAGES:
        program("e2e.cluster", "load-image", image_name(part))
