"""Streams an image from buildah into containerd without the layers that the node has already.

buildah writes a docker archive whose layers are named after the digest of their content. On its way to containerd the
stream is turned into an OCI layout: layers that the node has are read over, and only what is new is written there.
A change in the last layer of a 1.1 GB image so takes the time of reading it, and no temporary file is made.
"""

import hashlib
import io
import json
import re
import tarfile
from dataclasses import dataclass, field
from typing import IO, Any

from e2e.cluster.errors import ClusterError

CHUNK = 1 << 20  # bytes
LAYER = re.compile(r"([0-9a-f]{64})\.tar")
CONFIG = re.compile(r"([0-9a-f]{64})\.json")
OCI = "application/vnd.oci.image"


@dataclass
class _Thinned:
    """What has gone through so far."""

    sizes: dict[str, int] = field(default_factory=dict)  # of every layer, by hex digest
    written: int = 0  # bytes of layers that were not there
    config: bytes = b""
    layers: list[str] = field(default_factory=list)  # hex digests, in the image's order


def thin_archive(archive: IO[bytes], reference: str, present: frozenset[str], output: IO[bytes]) -> int:
    """Turns a docker archive (a stream) into an OCI layout (a stream) that lacks the layers in `present`.

    Returns the bytes of the layers that were not left out.

    Args:
        archive: what `buildah push IMAGE docker-archive:...` writes; read to its end.
        reference: the name under which containerd shall keep the image.
        present: digests (`sha256:...`) in the node's content store.
        output: gets a tar stream for `ctr images import -`.

    Raises:
        ClusterError: the archive ended early or is of another form.
    """
    thinned = _Thinned()
    try:
        with (
            tarfile.open(fileobj=archive, mode="r|", bufsize=CHUNK) as source,
            tarfile.open(fileobj=output, mode="w|", bufsize=CHUNK) as target,
        ):
            for member in source:
                _pass_on(source, member, present, target, thinned)
            _finish(thinned, reference, target)
    except tarfile.TarError as error:
        raise ClusterError(f"{reference}: the archive of the image is broken: {error}") from error
    return thinned.written


def _pass_on(
    source: tarfile.TarFile, member: tarfile.TarInfo, present: frozenset[str], target: tarfile.TarFile, state: _Thinned
) -> None:
    layer, config = LAYER.fullmatch(member.name), CONFIG.fullmatch(member.name)
    if layer:
        state.sizes[layer[1]] = member.size
        if f"sha256:{layer[1]}" not in present:
            state.written += member.size
            target.addfile(_blob(layer[1], member.size), source.extractfile(member))
    elif config:
        state.config = _content(source, member)
        target.addfile(_blob(config[1], member.size), io.BytesIO(state.config))
    elif member.name == "manifest.json":
        [entry] = json.loads(_content(source, member))
        state.layers = [name.removesuffix(".tar") for name in entry["Layers"]]


def _finish(state: _Thinned, reference: str, target: tarfile.TarFile) -> None:
    """Writes what makes the blobs an image: manifest and index."""
    if not state.config or not state.layers or not set(state.layers) <= state.sizes.keys():
        raise ClusterError(f"{reference}: the archive of the image ended early or is of an unknown form")
    layers = [descriptor(f"{OCI}.layer.v1.tar", f"sha256:{each}", state.sizes[each]) for each in state.layers]
    config = descriptor(f"{OCI}.config.v1+json", _digest(state.config), len(state.config))
    manifest = json.dumps({"schemaVersion": 2, "config": config, "layers": layers}).encode()
    entry = descriptor(f"{OCI}.manifest.v1+json", _digest(manifest), len(manifest))
    entry["annotations"] = {"io.containerd.image.name": reference}
    index = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    target.addfile(_blob(_digest(manifest).removeprefix("sha256:"), len(manifest)), io.BytesIO(manifest))
    for name, content in (("index.json", index), ("oci-layout", b'{"imageLayoutVersion": "1.0.0"}')):
        target.addfile(_file(name, len(content)), io.BytesIO(content))


def descriptor(media_type: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def _digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def _content(source: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = source.extractfile(member)
    return file.read() if file else b""


def _blob(digest: str, size: int) -> tarfile.TarInfo:
    return _file(f"blobs/sha256/{digest}", size)


def _file(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member
