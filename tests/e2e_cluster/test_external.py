"""Clusters that were made elsewhere."""

from pathlib import Path

import pytest

from e2e.cluster.errors import UsageError
from e2e.cluster.external import chosen_context, load_command

ARCHIVE = Path("/tmp/image.tar")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with nothing on it but what a test puts there."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def put(folder: Path, name: str) -> None:
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("context", "program", "expected"),
    [
        ("kind-dev", "kind", ["kind", "load", "image-archive", "/tmp/image.tar", "--name", "dev"]),
        ("k3d-a-b", "k3d", ["k3d", "image", "import", "/tmp/image.tar", "--cluster", "a-b"]),
        ("minikube", "minikube", ["minikube", "image", "load", "/tmp/image.tar", "--profile", "minikube"]),
    ],
)
def test_images_are_loaded_by_the_means_of_the_clusters_kind(
    programs: Path, context: str, program: str, expected: list[str]
) -> None:
    """The context's name tells the kind and the cluster."""
    put(programs, program)
    assert load_command(context, ARCHIVE) == expected


@pytest.mark.parametrize("context", ["gke_project_zone_cluster", "kind-dev", "minikube"])
def test_a_cluster_without_such_means_is_refused_with_advice(programs: Path, context: str) -> None:
    """A cloud's cluster, or a kind whose program is not here: push to a registry."""
    with pytest.raises(UsageError, match="push the image to a registry"):
        load_command(context, ARCHIVE)


def test_the_environment_names_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty is the same as unset."""
    monkeypatch.setenv("KVASIR_E2E_USE_CONTEXT", "")
    assert chosen_context() is None
    monkeypatch.setenv("KVASIR_E2E_USE_CONTEXT", "kind-dev")
    assert chosen_context() == "kind-dev"
