"""Images made from nothing: the pause image, and a writer of archives for tests."""

import hashlib
import io
import json
import tarfile
import tempfile
from pathlib import Path

from e2e.cluster import shell
from e2e.cluster.errors import ClusterError
from e2e.cluster.layout import PAUSE_IMAGE

PAUSE_SOURCE = r"""
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

/* Holds a pod's namespaces; as process 1 of a shared PID namespace it also reaps orphans. */
static void stop(int number) { (void)number; _exit(0); }
static void reap(int number) { (void)number; while (waitpid(-1, 0, WNOHANG) > 0) {} }

int main(void) {
  struct sigaction stopping = {.sa_handler = stop}, reaping = {.sa_handler = reap, .sa_flags = SA_NOCLDSTOP};
  sigaction(SIGTERM, &stopping, 0);
  sigaction(SIGINT, &stopping, 0);
  sigaction(SIGCHLD, &reaping, 0);
  for (;;) pause();
}
"""


def pause_archive(cache: Path) -> Path:
    """The pause image: one static program in an image made from nothing; built once.

    Raises:
        ClusterError: the compiler is missing or failed.
    """
    archive = cache / "pause" / "pause.tar"
    if not archive.exists():
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            source, program = Path(folder, "pause.c"), Path(folder, "pause")
            source.write_text(PAUSE_SOURCE)
            shell.run(["gcc", "-Os", "-static", "-s", "-o", program, source])
            draft = archive.with_suffix(".new")
            write_archive(draft, PAUSE_IMAGE, {"pause": program.read_bytes()}, ["/pause"])
            draft.replace(archive)
    return archive


def write_archive(path: Path, reference: str, files: dict[str, bytes], entrypoint: list[str]) -> None:
    """Writes a docker archive with one layer of executable files: the same bytes for the same input."""
    layer = _tar({name: (content, 0o755) for name, content in files.items()})
    config = {
        "architecture": "amd64" if _machine() == "x86_64" else "arm64",
        "os": "linux",
        "config": {"Entrypoint": entrypoint, "User": "65535:65535"},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]},
    }
    blob = json.dumps(config, sort_keys=True).encode()
    name = hashlib.sha256(blob).hexdigest() + ".json"
    manifest = json.dumps([{"Config": name, "RepoTags": [reference], "Layers": ["layer.tar"]}]).encode()
    members = {name: (blob, 0o644), "layer.tar": (layer, 0o644), "manifest.json": (manifest, 0o644)}
    path.write_bytes(_tar(members))


def _machine() -> str:
    machine = shell.run(["uname", "-m"]).strip()
    if machine not in ("x86_64", "aarch64"):
        raise ClusterError(f"{machine}: only x86_64 and aarch64 machines are known here")
    return machine


def _tar(files: dict[str, tuple[bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, (content, mode) in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), mode
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()
