"""Builds the Kubernetes servers once, from Debian's own source package, and keeps them in the cache."""

import os
import re
import shutil
import subprocess
import time
from collections import deque
from pathlib import Path

from e2e.cluster import packages, processes, shell
from e2e.cluster.apt_sources import source_stanzas
from e2e.cluster.errors import ClusterError
from e2e.cluster.progress import Progress, Step, seconds
from e2e.cluster.versions import SERVERS, KubeVersion

VERSION = KubeVersion(1, 20, 2)  # what Debian 12 ships
SOURCE_PACKAGE = "kubernetes"
# The vendored reflect2 1.0.1 crashes under Go 1.18 and newer; Debian packages the fixed 1.0.2 as source.
REFLECT_PACKAGE = "golang-github-modern-go-reflect2-dev"
REFLECT_FOLDER = "github.com/modern-go/reflect2"


def built_folder(cache: Path) -> Path:
    return cache / "kubernetes" / str(VERSION)


def is_built(cache: Path) -> bool:
    return all((built_folder(cache) / name).is_file() for name in SERVERS)


def build(cache: Path, progress: Progress) -> None:
    """Fetches, patches and compiles; a build that was cut short starts over with Go's cache warm.

    Raises:
        ClusterError: a step failed; the log's end is shown and its path named.
    """
    if needed := packages.missing(packages.BUILD_PROGRAMS):
        with progress.step(f"install {', '.join(needed)}"):
            packages.install(needed)
    work = cache / "build"
    processes.end_all(work)  # what a killed build has left running
    work.mkdir(parents=True, exist_ok=True)
    with progress.step(f"fetch Debian's source of Kubernetes {VERSION}"):
        tree = fetch_source(work)
        replace_reflect2(work, tree)
    with progress.step(f"build Kubernetes {VERSION} (once; about 5 minutes on 2 cores)") as step:
        compile_servers(tree, work / "build.log", cache / "go-build", step)
    folder = built_folder(cache)
    folder.mkdir(parents=True, exist_ok=True)
    for name in SERVERS:
        draft = folder / f"{name}.new"
        shutil.copy2(tree / "_output/local/bin/linux" / _go_architecture() / name, draft)
        draft.replace(folder / name)
    shutil.rmtree(work)
    shutil.rmtree(cache / "go-build", ignore_errors=True)


def fetch_source(work: Path) -> Path:
    """Downloads and unpacks the source package with a private apt configuration; returns its folder."""
    private = _private_apt(work)
    shell.run(["apt-get", "-q", *private, "update"])
    for old in work.glob(f"{SOURCE_PACKAGE}-*/"):
        shutil.rmtree(old)
    shell.run(["apt-get", "-q", *private, "source", SOURCE_PACKAGE], cwd=work)
    trees = list(work.glob(f"{SOURCE_PACKAGE}-*/"))
    if len(trees) != 1 or f"really{str(VERSION)[1:]}" not in trees[0].name:
        found = ", ".join(tree.name for tree in trees) or "nothing"
        raise ClusterError(f"expected Kubernetes {VERSION} of Debian 12, found {found}; use --binaries DIR")
    return trees[0]


def _private_apt(work: Path) -> list[str]:
    """Options that make apt use our source list and our folder for its state, and leave the system's alone."""
    etc = Path("/etc/apt")
    files = [etc / "sources.list", *etc.glob("sources.list.d/*.list"), *etc.glob("sources.list.d/*.sources")]
    stanzas = source_stanzas({file.name: file.read_text() for file in files if file.is_file()})
    if not stanzas:
        raise ClusterError("no Debian 12 archive in /etc/apt/sources.list*; add one, or use --binaries DIR")
    parts, lists = work / "sources.list.d", work / "lists"
    parts.mkdir(exist_ok=True)
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    (parts / "kvasir.sources").write_text(stanzas)
    options = ["Dir::Etc::SourceList=/dev/null", f"Dir::Etc::SourceParts={parts}", f"Dir::State::Lists={lists}"]
    options += ["APT::Sandbox::User=root", "Dir::Cache::pkgcache=", "Dir::Cache::srcpkgcache="]
    return [word for option in options for word in ("-o", option)]


def replace_reflect2(work: Path, tree: Path) -> None:
    """Replaces the vendored reflect2 by Debian's fixed one."""
    unpacked = work / "reflect2"
    shutil.rmtree(unpacked, ignore_errors=True)
    for old in work.glob(f"{REFLECT_PACKAGE}_*.deb"):
        old.unlink()
    shell.run(["apt-get", "-q", "download", REFLECT_PACKAGE], cwd=work)
    for package in work.glob(f"{REFLECT_PACKAGE}_*.deb"):
        shell.run(["dpkg-deb", "--extract", package, unpacked])
    source, target = unpacked / "usr/share/gocode/src" / REFLECT_FOLDER, tree / "vendor" / REFLECT_FOLDER
    for old in [*target.glob("*.go"), *target.glob("*.s")]:
        old.unlink()
    for new in [*source.glob("*.go"), *source.glob("*.s")]:
        shutil.copy2(new, target)


def compile_servers(tree: Path, log: Path, go_cache: Path, step: Step) -> None:
    """Runs Kubernetes' own `make`; its output goes to the log, how far it is to the progress."""
    command = ["make", "WHAT=" + " ".join(f"cmd/{name}" for name in SERVERS)]
    began, compiled = time.monotonic(), 0
    recent: deque[str] = deque(maxlen=20)
    environment = dict(os.environ) | build_environment(go_cache) | processes.marks(tree.parent, "build")
    with log.open("w", buffering=1) as file:
        process = subprocess.Popen(
            command, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            recent.append(line.rstrip())
            compiled += is_package(line)
            step.update(f"{compiled} packages compiled after {seconds(time.monotonic() - began)}")
    step.note = f"{compiled} packages"
    if process.wait() != 0:
        raise ClusterError(f"the build failed (log: {log}):\n" + "\n".join(recent))


def is_package(line: str) -> bool:
    """Whether a line of the build's output is `go install -v` naming a package that it compiles."""
    return re.fullmatch(r"[a-z0-9._~-]+(/[\w.~-]+)*\n", line) is not None


def build_environment(go_cache: Path) -> dict[str, str]:
    """The version that the servers will report, and a Go that uses the vendored sources alone.

    Without the old in-tree clouds 2.0 of 3.0 million lines are left. kubelet is linked like the others, without C:
    else the 970 packages that it shares with them would be compiled twice.
    """
    return {
        "GO111MODULE": "off",
        "GOCACHE": str(go_cache),
        "GOFLAGS": "-v -tags=providerless",  # -v names each package as it is compiled
        "KUBE_STATIC_OVERRIDES": "kubelet",
        "KUBE_GIT_VERSION": str(VERSION),
        "KUBE_GIT_MAJOR": str(VERSION.major),
        "KUBE_GIT_MINOR": str(VERSION.minor),
        "KUBE_GIT_TREE_STATE": "archive",
        "KUBE_GIT_COMMIT": "debian",
    }


def _go_architecture() -> str:
    return shell.run(["go", "env", "GOARCH"]).strip()
