"""Proves what the images promise: not root, a read-only root file system, no compiler, torch in the runtime's alone."""

import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster import shell
from e2e.cluster.errors import ClusterError
from e2e.cluster.progress import Progress
from e2e.images import builders
from e2e.images.build import image_name

USER = 65532


@dataclass(frozen=True)
class Check:
    """A command in the image, and whether it has to succeed."""

    title: str
    argv: tuple[str, ...]
    succeeds: bool = True


COMMON = (
    Check("runs as user 65532", ("sh", "-c", f"test $(id -u):$(id -g) = {USER}:{USER}")),
    Check("cannot write to its root file system", ("sh", "-c", "echo x > /opt/kvasir/x"), succeeds=False),
    Check("may write to /tmp", ("sh", "-c", "echo x > $HOME/x")),
    Check(
        "holds no compiler",
        ("sh", "-c", "command -v gcc || command -v cc || command -v g++ || command -v ld"),
        succeeds=False,
    ),
    Check("holds no pip", ("python", "-c", "import pip"), succeeds=False),
    Check("remembers no pip configuration", ("sh", "-c", 'test ! -s /etc/pip.conf && test -z "$(ls -A /mnt)"')),
)
CHECKS = {
    "operator": (
        Check("shows its help", ("kvasir-operator", "--help")),
        Check("holds what the operator imports", ("python", "-c", "import kopf, kubernetes.aio, aiohttp, yaml")),
        Check("holds no torch", ("python", "-c", "import torch"), succeeds=False),
        *COMMON,
    ),
    "runtime": (
        Check("shows its help", ("kvasir-runtime", "--help")),
        Check("shows the help of serve", ("kvasir-runtime", "serve", "--help")),
        Check("shows the help of fetch", ("kvasir-runtime", "fetch", "--help")),
        Check(
            "computes with torch",
            ("python", "-c", "import torch; assert (torch.ones(2, 2) @ torch.ones(2, 2)).sum() == 8"),
        ),
        Check(
            "has its CPU kernels compiled",
            (
                "python",
                "-c",
                "from kvasir_runtime.kernels.cpu.library import load_library as l; assert l().path.parts[1] == 'opt'",
            ),
        ),
        Check("holds no Kubernetes client", ("python", "-c", "import kubernetes"), succeeds=False),
        *COMMON,
    ),
}


def check_image(part: str, builder: builders.Name, progress: Progress) -> None:
    """Run every check of a part's image.

    Raises:
        ClusterError: one of them did not go as promised; shows what it printed.
    """
    with runner(builder, image_name(part)) as prefix:
        for check in CHECKS[part]:
            with progress.step(f"{part}: {check.title}"):
                run_check(check, prefix.command(check.argv))


def run_check(check: Check, argv: Sequence[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300)
    if (done.returncode == 0) != check.succeeds:
        wanted = "succeed" if check.succeeds else "fail"
        output = (done.stdout + done.stderr)[-2000:]
        raise ClusterError(f"{' '.join(check.argv)} ended with {done.returncode}, was to {wanted}\n{output}")


@dataclass(frozen=True)
class Runner:
    """How a command runs in an image; `bundle` is set when runc runs it from a mounted root file system."""

    image: str
    builder: builders.Name
    root: Path | None = None
    bundle: Path | None = None

    def command(self, argv: Sequence[str]) -> list[str]:
        if self.bundle is None or self.root is None:
            limits = ["--read-only", "--tmpfs", "/tmp:mode=1777", "--cap-drop", "ALL", "--network", "none"]
            return [self.builder, "run", "--rm", *limits, "--entrypoint", argv[0], self.image, *argv[1:]]
        config = runc_config(self.root, json.loads((self.bundle / "image.json").read_text()), argv)
        (self.bundle / "config.json").write_text(json.dumps(config))
        return ["runc", "run", "--bundle", str(self.bundle), f"kvasir-check-{self.bundle.name}"]


@contextmanager
def runner(builder: builders.Name, image: str) -> Iterator[Runner]:
    """Runs the image by its builder, or by runc where the builder cannot run images with a read-only root."""
    if builder != "buildah":
        yield Runner(image, builder)
        return
    container = shell.run(["buildah", "from", "--pull=never", image]).strip()
    try:
        root = Path(shell.run(["buildah", "mount", container]).strip())
        with tempfile.TemporaryDirectory(prefix="kvasir-check-") as bundle:
            described = json.loads(shell.run(["buildah", "inspect", "--type", "image", image]))
            Path(bundle, "image.json").write_text(json.dumps(described["OCIv1"]["config"]))
            yield Runner(image, builder, root, Path(bundle))
    finally:
        shell.run(["buildah", "rm", container])


def runc_config(root: Path, image: dict[str, object], argv: Sequence[str]) -> dict[str, object]:
    """A container as strict as the operator's pods: the image's user, no capability, nothing writable but /tmp.

    Specification: https://github.com/opencontainers/runtime-spec/blob/main/config.md
    """
    user, _, group = str(image["User"]).partition(":")
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": int(user), "gid": int(group)},
            "args": list(argv),
            "env": image["Env"],
            "cwd": "/",
            "capabilities": {},
            "noNewPrivileges": True,
        },
        "root": {"path": str(root), "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]},
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")]},
    }
