"""Image names and archives."""

import tarfile
from pathlib import Path

import pytest

from e2e.cluster.errors import UsageError
from e2e.cluster.images import archive_images, full_reference
from e2e.cluster.scratch import write_archive


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("kvasir", "docker.io/library/kvasir:latest"),
        ("kvasir:dev", "docker.io/library/kvasir:dev"),
        ("kvasir/runtime:dev", "docker.io/kvasir/runtime:dev"),
        ("localhost/kvasir", "localhost/kvasir:latest"),
        ("registry:5000/kvasir", "registry:5000/kvasir:latest"),
        ("ghcr.io/a/b@sha256:00", "ghcr.io/a/b@sha256:00"),
    ],
)
def test_names_as_the_node_keeps_them(name: str, expected: str) -> None:
    """The same expansion that the kubelet's runtime makes of a pod's image."""
    assert full_reference(name) == expected


def test_an_archive_that_we_write_reads_back(tmp_path: Path) -> None:
    """Same content, same bytes, same id; the file in the layer is executable."""
    first, second = tmp_path / "a.tar", tmp_path / "b.tar"
    for path in (first, second):
        write_archive(path, "docker.io/library/box:1", {"bin/x": b"program"}, ["/bin/x"])
    assert first.read_bytes() == second.read_bytes()
    [(reference, identity)] = archive_images(first).items()
    assert reference == "docker.io/library/box:1"
    with tarfile.open(first) as tar:
        assert f"{identity.removeprefix('sha256:')}.json" in tar.getnames()
        layer = tar.extractfile("layer.tar")
        assert layer is not None
        with tarfile.open(fileobj=layer) as files:
            assert files.getmember("bin/x").mode == 0o755


@pytest.mark.parametrize("content", [b"", b"no tar at all"])
def test_what_is_no_archive_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    """The message names the file and the form that is wanted."""
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"x\.tar: not a docker archive"):
        archive_images(path)
