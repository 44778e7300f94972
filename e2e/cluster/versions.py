"""Versions of Kubernetes servers, read from what their `--version` prints."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from e2e.cluster.errors import UsageError

SERVERS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")


@dataclass(frozen=True, order=True)
class KubeVersion:
    """A release, ordered; the patch level never decides about flags."""

    major: int
    minor: int
    patch: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `Kubernetes v1.20.2`, `v1.36.2+k3s1` or `1.31`.

        Raises:
            UsageError: there is no version in the text.
        """
        found = re.search(r"v?(\d+)\.(\d+)(?:\.(\d+))?", text)
        if not found:
            raise UsageError(f"no Kubernetes version in {text.strip()!r}")
        return cls(int(found[1]), int(found[2]), int(found[3] or 0))

    def at_least(self, major: int, minor: int) -> bool:
        return (self.major, self.minor) >= (major, minor)

    def __str__(self) -> str:
        return f"v{self.major}.{self.minor}.{self.patch}"


OLDEST = KubeVersion(1, 20)


def binaries_version(folder: Path) -> KubeVersion:
    """The version of the servers in a folder, all five of which must be there and agree on major and minor.

    Raises:
        UsageError: a server is missing, does not run, or is of another version; names them all.
    """
    missing = [name for name in SERVERS if not (folder / name).is_file()]
    if missing:
        raise UsageError(f"--binaries {folder}: {', '.join(missing)} not found; all of {', '.join(SERVERS)} are needed")
    found = {name: _ask(folder / name) for name in SERVERS}
    if len({(v.major, v.minor) for v in found.values()}) > 1:
        listing = ", ".join(f"{name} {version}" for name, version in found.items())
        raise UsageError(f"--binaries {folder}: the servers are of different versions: {listing}")
    version = found["kube-apiserver"]
    if version < OLDEST:
        raise UsageError(f"--binaries {folder}: {version} is older than {OLDEST}, the oldest that is supported")
    return version


def _ask(binary: Path) -> KubeVersion:
    try:
        done = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise UsageError(f"{binary} --version failed: {error}") from error
    return KubeVersion.parse(done.stdout)
