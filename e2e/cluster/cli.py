"""The command line's grammar: verbs, options and their help."""

import argparse
from pathlib import Path
from typing import TypeAlias

from e2e.cluster.layout import chosen_name
from e2e.cluster.nodes import API_ONLY
from e2e.cluster.status import COMPONENTS

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - it has no public name

DESCRIPTION = """\
A real Kubernetes cluster of one node, made on a Debian 12 machine from Debian's own packages: no container registry,
no virtual machine, nothing installed that keeps running. Or any other cluster: set KVASIR_E2E_USE_CONTEXT to the name
of a context in your kubeconfig, and nothing is ever created or destroyed.
"""
EPILOG = """\
exit status: 0 done; 1 something failed, the message says what; 2 this machine or the command line does not allow it;
3 there is no cluster (status, kubeconfig)
"""


def parser() -> argparse.ArgumentParser:
    """The whole command line, each verb with its own help."""
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser("python -m e2e.cluster", description=DESCRIPTION, epilog=EPILOG, formatter_class=raw)
    top.add_argument("--name", default=chosen_name(), help="which of several clusters (default: %(default)s)")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_lifecycle(verbs)
    _add_images_and_volumes(verbs)
    _add_nodes(verbs)
    _add_looking(verbs)
    return top


def _verb(verbs: Verbs, name: str, text: str) -> argparse.ArgumentParser:
    return verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")


def _add_lifecycle(verbs: Verbs) -> None:
    up = _verb(verbs, "up", "make the cluster; harmless when it is up, cleans first what a crash left")
    up.add_argument(
        "--binaries", type=Path, metavar="DIR", help="run the Kubernetes servers in DIR (1.20 to the newest) instead"
    )
    _verb(verbs, "down", "take the cluster down and verify that nothing is left")
    _verb(verbs, "leftovers", "list what a cluster has left on the machine; exit status 1 if anything")


def _add_images_and_volumes(verbs: Verbs) -> None:
    load = _verb(verbs, "load-image", "put images into the node without a registry; what is there already is skipped")
    load.add_argument("image", nargs="+", help="a name in buildah's, podman's or docker's storage, or a docker archive")
    volume = _verb(verbs, "volume", "make a PersistentVolume from a folder of this machine, for a claim to bind to")
    volume.add_argument("volume", metavar="NAME")
    volume.add_argument("folder", type=Path, metavar="DIR")
    volume.add_argument("--capacity", default="10Gi", help="what the volume claims to hold (default: %(default)s)")
    volume.add_argument("--claim", metavar="NAMESPACE/NAME", help="make the claim too, bound to this volume")


def _add_nodes(verbs: Verbs) -> None:
    group = _verb(verbs, "nodes", "add or remove nodes that are API objects only, for tests of scheduling")
    actions = group.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = _verb(actions, "add", f"add nodes; ordinary pods stay away (taint {API_ONLY}=true:NoSchedule)")
    add.add_argument("--count", type=int, default=1, help="how many nodes (default: %(default)s)")
    add.add_argument("--prefix", default="gpu-node", help="names are PREFIX-1, PREFIX-2, ... (default: %(default)s)")
    add.add_argument("--gpus", type=int, default=8, help="GPUs per node; 0 for a node without (default: %(default)s)")
    _add_product(add)
    add.add_argument("--mig", action="append", default=[], metavar="PROFILE=N", help="MIG devices, such as 1g.10gb=7")
    add.add_argument("--cpu", default="64", help="cores per node (default: %(default)s)")
    add.add_argument("--node-memory", default="512Gi", help="memory per node (default: %(default)s)")
    remove = _verb(actions, "remove", "remove API-only nodes (all, when none is named) and the pods bound to them")
    remove.add_argument("node", nargs="*")
    gpus = _verb(verbs, "gpus", "give the real node GPUs that only the API knows; 0 takes them away")
    gpus.add_argument("count", type=int, metavar="N")
    _add_product(gpus)


def _add_product(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--product", default="NVIDIA-A100-SXM4-80GB", help="label nvidia.com/gpu.product (%(default)s)")
    verb.add_argument("--memory", type=int, default=81920, help="MiB per GPU (default: %(default)s)")


def _add_looking(verbs: Verbs) -> None:
    _verb(verbs, "status", "show components, nodes and versions; exit status 1 when not usable")
    _verb(verbs, "kubeconfig", "print the path of the kubeconfig: export KUBECONFIG=$(... kubeconfig)")
    logs = _verb(verbs, "logs", "print the end of a component's log, or of all")
    logs.add_argument("component", nargs="?", help=", ".join(COMPONENTS))
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what is added")
    logs.add_argument("-n", "--lines", type=int, default=50, help="lines of each log (default: %(default)s)")
    kubectl = _verb(verbs, "kubectl", "run kubectl against the cluster: kubectl -- get pods -A")
    kubectl.add_argument("arguments", nargs=argparse.REMAINDER)
