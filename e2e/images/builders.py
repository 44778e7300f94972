"""The programs that can build an image, and their command lines. Pure, but for `available` and `choose`."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from e2e.cluster import packages
from e2e.cluster.errors import UsageError

Name = Literal["docker", "podman", "buildah"]
PREFERENCE: tuple[Name, ...] = ("docker", "podman", "buildah")
PROBES: dict[Name, list[str]] = {  # a docker client without a daemon is no builder
    "docker": ["docker", "info"],
    "podman": ["podman", "info"],
    "buildah": ["buildah", "info"],
}


@dataclass(frozen=True)
class Build:
    """One image: its name, its Dockerfile, and what differs from the Dockerfile's defaults."""

    image: str
    dockerfile: Path
    context: Path
    arguments: Mapping[str, str]
    volumes: Sequence[str] = ()  # SOURCE:TARGET:ro, seen while building; docker has no such thing


def build_command(builder: Name, build: Build) -> list[str]:
    """The command line that builds, reusing layers and never asking a registry for a base that is in place."""
    argv = ["docker", "build"] if builder == "docker" else [builder, "build", "--layers", "--pull=missing"]
    argv += ["--network", "host"]
    for name, value in sorted(build.arguments.items()):
        argv += ["--build-arg", f"{name}={value}"]
    if builder != "docker":
        for volume in build.volumes:
            argv += ["--volume", volume]
    return [*argv, "--file", str(build.dockerfile), "--tag", build.image, str(build.context)]


def has_image(builder: Name, image: str) -> bool:
    argv = {
        "docker": ["docker", "image", "inspect", image],
        "podman": ["podman", "image", "exists", image],
        "buildah": ["buildah", "inspect", "--type", "image", image],
    }[builder]
    return _succeeds(argv)


def pull(builder: Name, image: str) -> bool:
    """Whether a registry gave the image; it is given a minute."""
    return _succeeds([builder, "pull", image], timeout=60)


def available(builder: Name) -> bool:
    return shutil.which(builder) is not None and _succeeds(PROBES[builder])


def choose(wanted: str) -> Name:
    """The builder to use; on Debian, root gets buildah installed when there is none.

    Raises:
        UsageError: the wanted one does not answer, or there is none and none can be installed.
    """
    for name in PREFERENCE:
        if wanted in ("auto", name) and available(name):
            return name
    if wanted not in ("auto", "buildah"):
        raise UsageError(
            f"{wanted} does not answer (`{' '.join(PROBES[_name(wanted)])}` fails); start it, or use --tool auto"
        )
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise UsageError("no docker, podman or buildah answers: install one of them, or run this as root on Debian")
    packages.install(["buildah"])
    return "buildah"


def _name(text: str) -> Name:
    return next(name for name in PREFERENCE if name == text)


def _succeeds(argv: Sequence[str], timeout: float = 30) -> bool:
    try:
        return subprocess.run(argv, capture_output=True, check=False, timeout=timeout).returncode == 0
    except subprocess.TimeoutExpired:
        return False
