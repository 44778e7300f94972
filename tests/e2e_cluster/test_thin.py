"""Images on their way into the node: everything that is new, nothing that is there."""

import hashlib
import io
import json
import tarfile

import pytest

from e2e.cluster.errors import ClusterError
from e2e.cluster.thin import thin_archive

REFERENCE = "docker.io/kvasir/runtime:dev"
BASE, TOP = b"base layer" * 1000, b"top layer"
CONFIG = b'{"os": "linux"}'


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def docker_archive(*layers: bytes) -> dict[str, bytes]:
    """As buildah writes it: layers by the digest of their content, the manifest last."""
    names = [f"{digest(layer)}.tar" for layer in layers]
    entry = {"Config": f"{digest(CONFIG)}.json", "RepoTags": [REFERENCE], "Layers": names}
    files = dict(zip(names, layers, strict=True)) | {entry["Config"]: CONFIG}
    return {str(k): v for k, v in files.items()} | {
        "manifest.json": json.dumps([entry]).encode(),
        "repositories": b"{}",
    }


def thinned(archive: bytes, *present: bytes) -> tuple[int, dict[str, bytes]]:
    output = io.BytesIO()
    there = frozenset(f"sha256:{digest(content)}" for content in present)
    written = thin_archive(io.BytesIO(archive), REFERENCE, there, output)
    with tarfile.open(fileobj=io.BytesIO(output.getvalue())) as result:
        return written, {m.name: result.extractfile(m).read() for m in result}  # type: ignore[union-attr]


def test_layers_that_are_there_are_left_out() -> None:
    """Only the new layer travels; the manifest still names both, in order, with their sizes."""
    written, files = thinned(tar(docker_archive(BASE, TOP)), BASE)
    assert written == len(TOP)
    assert f"blobs/sha256/{digest(BASE)}" not in files
    assert files[f"blobs/sha256/{digest(TOP)}"] == TOP
    [entry] = json.loads(files["index.json"])["manifests"]
    assert entry["annotations"] == {"io.containerd.image.name": REFERENCE}
    manifest = json.loads(files["blobs/" + entry["digest"].replace(":", "/")])
    assert [(each["digest"], each["size"]) for each in manifest["layers"]] == [
        (f"sha256:{digest(BASE)}", len(BASE)),
        (f"sha256:{digest(TOP)}", len(TOP)),
    ]


def test_the_id_of_the_image_is_kept() -> None:
    """The configuration passes unchanged, so that the same image is recognised next time."""
    _, files = thinned(tar(docker_archive(BASE)))
    [entry] = json.loads(files["index.json"])["manifests"]
    manifest = json.loads(files["blobs/" + entry["digest"].replace(":", "/")])
    assert manifest["config"]["digest"] == f"sha256:{digest(CONFIG)}"
    assert files[f"blobs/sha256/{digest(CONFIG)}"] == CONFIG


@pytest.mark.parametrize("lacking", ["manifest.json", f"{digest(CONFIG)}.json", f"{digest(TOP)}.tar"])
def test_an_archive_that_lacks_a_part_is_refused(lacking: str) -> None:
    """Nothing half is ever given a name in the node."""
    files = docker_archive(BASE, TOP)
    del files[lacking]
    with pytest.raises(ClusterError, match="ended early"):
        thinned(tar(files))


@pytest.mark.parametrize("length", [0, 600, 5000])
def test_a_stream_that_breaks_off_is_refused(length: int) -> None:
    """A builder that dies half-way leaves a cut stream."""
    with pytest.raises(ClusterError, match=r"broken|ended early"):
        thinned(tar(docker_archive(BASE, TOP))[:length])
