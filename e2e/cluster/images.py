"""Puts images into the node's containerd without a registry; an image that is there already is not sent again."""

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster import shell
from e2e.cluster.errors import ClusterError, UsageError
from e2e.cluster.thin import thin_archive


@dataclass(frozen=True)
class Containerd:
    """The node's containerd, as seen through its socket."""

    ctr: Path
    socket: Path

    def command(self, *arguments: str | Path) -> str:
        return shell.run(self._words(*arguments))

    def _words(self, *arguments: str | Path) -> list[str | Path]:
        return [self.ctr, "--address", self.socket, "--namespace", "k8s.io", *arguments]

    def image_id(self, reference: str) -> str | None:
        """The digest of the image's configuration (what docker calls its id), or None when it is not there."""
        lines = self.command("images", "list", f"name=={reference}").splitlines()[1:]
        if not lines:
            return None
        manifest = json.loads(self.command("content", "get", lines[0].split()[2]))
        if "manifests" in manifest:  # an index: of several platforms, the first is as good as any for comparing
            manifest = json.loads(self.command("content", "get", manifest["manifests"][0]["digest"]))
        return str(manifest["config"]["digest"])

    def load(self, archive: Path) -> None:
        self.command("images", "import", archive)

    def digests(self) -> frozenset[str]:
        """What is in the content store."""
        return frozenset(self.command("content", "list", "--quiet").split())

    def import_stream(self) -> "subprocess.Popen[bytes]":
        """An import that reads its archive from its standard input."""
        return subprocess.Popen(
            self._words("images", "import", "-"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )


def full_reference(name: str) -> str:
    """The name as containerd keeps it: `kvasir` is `docker.io/library/kvasir:latest`."""
    first, slash, _ = name.partition("/")
    if not slash:
        name = f"docker.io/library/{name}"
    elif not ("." in first or ":" in first or first == "localhost"):
        name = f"docker.io/{name}"
    return name if ":" in name.rsplit("/", 1)[1] or "@" in name else f"{name}:latest"


def archive_images(archive: Path) -> dict[str, str]:
    """The references in a docker archive and the id of each.

    Raises:
        UsageError: it is not an archive as `docker save` and `buildah push docker-archive:` write it.
    """
    try:
        with tarfile.open(archive) as tar:
            member = tar.extractfile("manifest.json")
            entries = json.loads(member.read()) if member else []
            configs = {entry["Config"]: _digest(tar, entry["Config"]) for entry in entries}
    except (tarfile.TarError, KeyError, ValueError, OSError) as error:
        raise UsageError(f"{archive}: not a docker archive (`docker save`): {error}") from error
    return {full_reference(tag): configs[entry["Config"]] for entry in entries for tag in entry["RepoTags"] or []}


def _digest(tar: tarfile.TarFile, name: str) -> str:
    member = tar.extractfile(name)
    if member is None:
        raise KeyError(name)
    return "sha256:" + hashlib.sha256(member.read()).hexdigest()


def load(node: Containerd, image: str) -> str:
    """Loads a name from the local builders' storage, or an archive; returns what was done, for people.

    Raises:
        UsageError: the image is nowhere, or the archive is none.
    """
    if Path(image).is_file():
        return _load_archive(node, Path(image))
    builder, identity = find_local(image)
    if node.image_id(full_reference(image)) == identity:
        return f"{image}: the same image is there already"
    if builder == "buildah":
        written = _stream_from_buildah(node, image)
        return f"{image}: loaded from buildah; {written / 2**20:.1f} MiB were new"
    with tempfile.TemporaryDirectory(prefix="kvasir-image-", dir="/var/tmp") as folder:
        archive = Path(folder, "image.tar")
        save(builder, image, archive)
        node.load(archive)
    return f"{image}: loaded from {builder}"


def _stream_from_buildah(node: Containerd, image: str) -> int:
    """Pipes the image into the node, less the layers that are there; returns the bytes of new layers.

    Raises:
        ClusterError: buildah or containerd failed; shows the words of the one that did.
    """
    reference = full_reference(image)
    push = ["buildah", "push", "--quiet", image, f"docker-archive:/dev/stdout:{reference}"]
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(push, stdout=subprocess.PIPE, stderr=complaints) as buildah,
        node.import_stream() as ctr,
    ):
        assert buildah.stdout
        assert ctr.stdin
        written, broken = 0, None
        try:
            written = thin_archive(buildah.stdout, reference, node.digests(), ctr.stdin)
        except (BrokenPipeError, ClusterError) as error:
            broken = error
        buildah.stdout.close()
        words = ctr.communicate()[0]
        if broken or ctr.returncode != 0 or buildah.wait() != 0:
            complaints.seek(0)
            shown = (complaints.read() + words).decode(errors="replace").strip()
            raise ClusterError(f"{image}: not loaded: {shown or broken}")
    return written


def _load_archive(node: Containerd, archive: Path) -> str:
    images = archive_images(archive)
    if not images:
        raise UsageError(f"{archive}: holds no named image; save it by name, not by id")
    names = ", ".join(images)
    if all(node.image_id(reference) == identity for reference, identity in images.items()):
        return f"{names}: the same image is there already"
    node.load(archive)
    return f"{names}: loaded"


INSPECT = {
    "buildah": ["buildah", "inspect", "--type", "image", "--format", "{{.FromImageID}}"],
    "podman": ["podman", "image", "inspect", "--format", "{{.Id}}"],
    "docker": ["docker", "image", "inspect", "--format", "{{.Id}}"],
}


def find_local(image: str) -> tuple[str, str]:
    """The builder that has the image, and the image's id.

    Raises:
        UsageError: no builder on this machine has it; names those that were asked.
    """
    present = [builder for builder in INSPECT if shutil.which(builder)]
    for builder in present:
        done = subprocess.run([*INSPECT[builder], image], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return builder, "sha256:" + done.stdout.strip().removeprefix("sha256:")
    asked = ", ".join(present) or "none of buildah, podman and docker is installed"
    raise UsageError(f"no image {image!r} here (asked: {asked}) and no file of that name")


def save(builder: str, image: str, archive: Path) -> None:
    """Writes the image as a docker archive under the very name that pods use."""
    if builder == "buildah":
        shell.run(["buildah", "push", image, f"docker-archive:{archive}:{full_reference(image)}"])
    elif builder == "podman":
        shell.run(["podman", "save", "--format", "docker-archive", "--output", archive, image])
    else:
        shell.run(["docker", "save", "--output", archive, image])
