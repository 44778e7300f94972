"""A cluster of these tests' own, beside any other, and a pod to look from."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.cluster import external, packages, scratch, shell
from e2e.cluster.layout import Layout, layout_for
from e2e.support.kubectl import Kubectl
from e2e.support.waiting import wait_for

NAME = "selftest"
BOX = "docker.io/library/kvasir-test-box:1"


def program(*words: str, name: str = NAME, status: int = 0) -> "subprocess.CompletedProcess[str]":
    """Runs a verb on a cluster of these tests, which must end with the given exit status."""
    command = [sys.executable, "-m", "e2e.cluster", "--name", name, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status, f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done


@pytest.fixture(scope="session")
def own_clusters() -> None:
    if context := external.chosen_context():
        pytest.skip(f"these tests are about clusters made here, not about {context}")


@pytest.fixture(scope="session")
def layout(own_clusters: None) -> Layout:
    return layout_for(NAME)


@pytest.fixture(scope="session")
def cluster(layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubectl]:
    """A cluster with an image that holds busybox."""
    program("up")
    archive = tmp_path_factory.mktemp("image") / "box.tar"
    write_box(archive)
    program("load-image", str(archive))
    yield Kubectl(layout.kubeconfig)
    program("down")


def write_box(archive: Path) -> None:
    """An image made from nothing and Debian's static busybox."""
    folder = archive.parent
    with packages.no_daemons():
        shell.run(["apt-get", "-q", "download", "busybox-static"], cwd=folder)
    for package in folder.glob("*.deb"):
        shell.run(["dpkg-deb", "--extract", package, folder])
    busybox = next(path for path in (folder / "bin/busybox", folder / "usr/bin/busybox") if path.exists()).read_bytes()
    scratch.write_archive(archive, BOX, {"bin/busybox": busybox, "bin/sh": busybox}, ["/bin/busybox"])


@pytest.fixture
def space(cluster: Kubectl, request: pytest.FixtureRequest) -> Iterator[Kubectl]:
    """Kubectl in a namespace of this test's own."""
    name = request.node.name.removeprefix("test_").replace("_", "-")[:50]
    cluster.run("create", "namespace", name)
    scoped = cluster.within(name)
    wait_for("the service account", lambda: scoped.get("serviceaccount", "default"), timeout=30)
    yield scoped
    cluster.run("delete", "namespace", name, "--wait=false")
