"""A cluster that somebody else made, named by a kubeconfig context: used, never created or destroyed."""

import json
import os
import shutil
import tempfile
from pathlib import Path

from e2e.cluster import images, shell
from e2e.cluster.errors import UsageError

VARIABLE = "KVASIR_E2E_USE_CONTEXT"


def chosen_context() -> str | None:
    """The context that the environment names, or None when a cluster is to be made here."""
    return os.environ.get(VARIABLE) or None


def kubeconfig_path() -> str:
    return os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")


def kubectl(context: str, *arguments: str) -> str:
    return shell.run(["kubectl", "--context", context, *arguments])


def check(context: str) -> str:
    """The server's version, once the context exists and answers.

    Raises:
        ClusterError: kubectl is missing, the context is unknown or the server does not answer.
    """
    return str(json.loads(kubectl(context, "get", "--raw", "/version"))["gitVersion"])


def refuse(verb: str, context: str) -> UsageError:
    return UsageError(f"{verb}: {VARIABLE}={context} names a cluster that was not made here; unset it to make one")


def load_image(context: str, image: str) -> str:
    """Loads an image by the means of the cluster's kind.

    Raises:
        UsageError: the kind has no such means here; says what to do by hand.
    """
    with tempfile.TemporaryDirectory(prefix="kvasir-image-", dir="/var/tmp") as folder:
        archive = Path(image)
        if not archive.is_file():
            builder, _ = images.find_local(image)
            archive = Path(folder, "image.tar")
            images.save(builder, image, archive)
        command = load_command(context, archive)
        shell.run(command)
    return f"{image}: loaded with {' '.join(command[:3])}"


def load_command(context: str, archive: Path) -> list[str]:
    """What brings an archive into a cluster, by the kind that the context's name tells.

    Raises:
        UsageError: the kind has no such means, or its program is not on PATH.
    """
    provider = context.split("-", 1)[0]
    if provider == "kind" and shutil.which("kind"):
        return ["kind", "load", "image-archive", str(archive), "--name", context.removeprefix("kind-")]
    if provider == "k3d" and shutil.which("k3d"):
        return ["k3d", "image", "import", str(archive), "--cluster", context.removeprefix("k3d-")]
    if provider == "minikube" and shutil.which("minikube"):
        return ["minikube", "image", "load", str(archive), "--profile", context]
    if shutil.which("k3s") and os.geteuid() == 0:
        return ["k3s", "ctr", "images", "import", str(archive)]
    raise UsageError(
        f"no way to load images into context {context!r} (kind, k3d, minikube and k3s are known, with their program on"
        " PATH): push the image to a registry that the cluster can reach, and name it so in the manifests"
    )
