"""The base image: from a registry where one answers, else made by debootstrap under the same name."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from e2e.cluster import packages, shell
from e2e.cluster.errors import UsageError
from e2e.cluster.progress import Step
from e2e.images import builders

BASE_IMAGE = "docker.io/library/debian:bookworm-slim"
SUITE = "bookworm"
SOURCES = """\
Types: deb
URIs: http://deb.debian.org/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://deb.debian.org/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""
"""Debian's own addresses, whatever mirror the machine uses."""

DPKG_EXCLUDES = """\
# As in Debian's slim images: containers have no readers for these.
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/man/*
path-exclude /usr/share/info/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/lintian/*
"""
MACHINE_FILES = ("etc/hostname", "etc/resolv.conf", "etc/hosts", "etc/machine-id")
EMPTIED = (
    *("var/lib/apt/lists", "var/cache/apt", "var/cache/debconf", "var/log", "tmp"),
    *("usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian"),
)


def ensure_base(builder: builders.Name, cache: Path, step: Step) -> None:
    """Make sure that the base image is in the builder's storage.

    Raises:
        UsageError: no registry answers and this machine cannot make the image itself.
    """
    if builders.has_image(builder, BASE_IMAGE):
        step.note = "is in place"
        return
    step.update("asking the registry")
    if builders.pull(builder, BASE_IMAGE):
        step.note = "from its registry"
        return
    archive = cache / "images" / f"{SUITE}-slim.tar"
    if not archive.exists():
        step.update("no registry answers: debootstrap")
        _bootstrap(archive)
    step.update("importing")
    _import(builder, archive)
    step.note = "made by debootstrap"


def _bootstrap(archive: Path) -> None:
    """A minimal Debian as a tar file, made from the mirror that apt uses."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise UsageError(f"no registry gives {BASE_IMAGE}; making it needs root on Debian (debootstrap)")
    packages.install(packages.missing({"debootstrap": "debootstrap"}))
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        root = Path(folder, "root")
        shell.run(["debootstrap", "--variant=minbase", SUITE, root, machine_mirror(_apt_uris())], timeout=1200)
        slim(root)
        draft = archive.with_suffix(".new")
        shell.run(["tar", "--numeric-owner", "--sort=name", "-C", root, "-cf", draft, "."])
        draft.replace(archive)


def slim(root: Path) -> None:
    """Take out what belongs to this machine, and what nobody reads in a container; leave Debian's own addresses."""
    for name in EMPTIED:
        for entry in (root / name).iterdir() if (root / name).is_dir() else ():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    for document in (root / "usr/share/doc").glob("*/*"):
        if document.name != "copyright":
            shutil.rmtree(document) if document.is_dir() and not document.is_symlink() else document.unlink()
    for name in MACHINE_FILES:
        (root / name).unlink(missing_ok=True)
    (root / "etc/apt/sources.list").unlink(missing_ok=True)
    _write(root / "etc/apt/sources.list.d/debian.sources", SOURCES)
    _write(root / "etc/dpkg/dpkg.cfg.d/docker", DPKG_EXCLUDES)


def machine_mirror(uris: Sequence[str]) -> str:
    """Where apt gets the suite from on this machine; Debian's own address when it says nothing usable."""
    return next((uri for uri in uris if uri.startswith(("http://", "https://"))), "http://deb.debian.org/debian")


def _apt_uris() -> list[str]:
    """The archive's base addresses of the suite, as apt itself resolves them."""
    argv = ["apt-get", "indextargets", "--format", "$(SITE) $(REPO_URI) $(CODENAME)", "Created-By: Packages"]
    lines = subprocess.run(argv, capture_output=True, text=True, check=False).stdout.splitlines()
    return [uri for _, uri, suite in (line.split() for line in lines if line.count(" ") == 2) if suite == SUITE]


def _import(builder: builders.Name, archive: Path) -> None:
    if builder != "buildah":
        shell.run([builder, "import", "--change", 'CMD ["bash"]', archive, BASE_IMAGE])
        return
    container = shell.run(["buildah", "from", "scratch"]).strip()
    try:
        shell.run(["buildah", "add", container, archive, "/"])
        shell.run(["buildah", "config", "--cmd", "bash", container])
        shell.run(["buildah", "commit", container, BASE_IMAGE])
    finally:
        shell.run(["buildah", "rm", container])


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
