"""The command line: `python -m e2e.cluster VERB`."""

import argparse
import os
import sys
from pathlib import Path

from e2e.cluster import external, images, leftovers, lifecycle, nodes, packages, status, volumes
from e2e.cluster.api import Api
from e2e.cluster.errors import ClusterError, UsageError
from e2e.cluster.layout import DEFAULT_NAME, Layout, layout_for
from e2e.cluster.progress import Progress

DESCRIPTION = """\
A real Kubernetes cluster of one node, made on a Debian 12 machine from Debian's own packages: no container registry,
no virtual machine, nothing installed that keeps running. Or any other cluster: set KVASIR_E2E_USE_CONTEXT to the name of
a context in your kubeconfig, and nothing is ever created or destroyed.
"""
EPILOG = """\
exit status: 0 done; 1 something failed, the message says what; 2 this machine or the command line does not allow it;
3 there is no cluster (status, kubeconfig)
"""


def parser() -> argparse.ArgumentParser:
    """The whole command line, each verb with its own help."""
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser("python -m e2e.cluster", description=DESCRIPTION, epilog=EPILOG, formatter_class=raw)
    top.add_argument("--name", default=DEFAULT_NAME, help="which cluster, when there are several (default: %(default)s)")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_lifecycle(verbs)
    _add_images_and_volumes(verbs)
    _add_nodes(verbs)
    _add_looking(verbs)
    return top


Verbs = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _verb(verbs: Verbs, name: str, text: str) -> argparse.ArgumentParser:  # type: ignore[valid-type]
    added: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")  # type: ignore[attr-defined]
    return added


def _add_lifecycle(verbs: Verbs) -> None:  # type: ignore[valid-type]
    up = _verb(verbs, "up", "make the cluster; harmless when it is up, cleans first what a crash left")
    up.add_argument(
        "--binaries", type=Path, metavar="DIR", help="run the Kubernetes servers in DIR (1.20 to the newest) instead"
    )
    up.set_defaults(run=_up)
    _verb(verbs, "down", "take the cluster down and verify that nothing is left").set_defaults(run=_down)
    check = _verb(verbs, "leftovers", "list what a cluster has left on the machine; exit status 1 if anything")
    check.set_defaults(run=_leftovers)


def _add_images_and_volumes(verbs: Verbs) -> None:  # type: ignore[valid-type]
    load = _verb(verbs, "load-image", "put images into the node without a registry; what is there already is skipped")
    load.add_argument("image", nargs="+", help="a name in buildah's, podman's or docker's storage, or a docker archive")
    load.set_defaults(run=_load_image)
    volume = _verb(verbs, "volume", "make a PersistentVolume from a folder of this machine, for a claim to bind to")
    volume.add_argument("volume", metavar="NAME")
    volume.add_argument("folder", type=Path, metavar="DIR")
    volume.add_argument("--capacity", default="10Gi", help="what the volume claims to hold (default: %(default)s)")
    volume.add_argument("--claim", metavar="NAMESPACE/NAME", help="make the claim too, bound to this volume")
    volume.set_defaults(run=_volume)


def _add_nodes(verbs: Verbs) -> None:  # type: ignore[valid-type]
    group = _verb(verbs, "nodes", "add or remove nodes that are API objects only, for tests of scheduling")
    actions = group.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = _verb(actions, "add", f"add nodes with GPUs; ordinary pods stay away (taint {nodes.API_ONLY}=true:NoSchedule)")
    add.add_argument("--count", type=int, default=1, help="how many nodes (default: %(default)s)")
    add.add_argument("--prefix", default="gpu-node", help="names are PREFIX-1, PREFIX-2, ... (default: %(default)s)")
    add.add_argument("--gpus", type=int, default=8, help="GPUs per node; 0 for a node without (default: %(default)s)")
    _add_product(add)
    add.add_argument("--mig", action="append", default=[], metavar="PROFILE=N", help="MIG devices, such as 1g.10gb=7")
    add.add_argument("--cpu", default="64", help="cores per node (default: %(default)s)")
    add.add_argument("--node-memory", default="512Gi", help="memory per node (default: %(default)s)")
    add.set_defaults(run=_nodes_add)
    remove = _verb(actions, "remove", "remove API-only nodes (all, when none is named) and the pods bound to them")
    remove.add_argument("node", nargs="*")
    remove.set_defaults(run=_nodes_remove)
    gpus = _verb(verbs, "gpus", "give the real node GPUs that only the API knows; 0 takes them away")
    gpus.add_argument("count", type=int, metavar="N")
    _add_product(gpus)
    gpus.set_defaults(run=_gpus)


def _add_product(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--product", default="NVIDIA-A100-SXM4-80GB", help="label nvidia.com/gpu.product (%(default)s)")
    verb.add_argument("--memory", type=int, default=81920, help="MiB per GPU (default: %(default)s)")


def _add_looking(verbs: Verbs) -> None:  # type: ignore[valid-type]
    _verb(verbs, "status", "show components, nodes and versions; exit status 1 when not usable").set_defaults(run=_status)
    config = _verb(verbs, "kubeconfig", "print the path of the kubeconfig: export KUBECONFIG=$(... kubeconfig)")
    config.set_defaults(run=_kubeconfig)
    logs = _verb(verbs, "logs", "print the end of a component's log, or of all")
    logs.add_argument("component", nargs="?", help=", ".join(status.COMPONENTS))
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what is added")
    logs.add_argument("-n", "--lines", type=int, default=50, help="lines of each log (default: %(default)s)")
    logs.set_defaults(run=_logs)
    kubectl = _verb(verbs, "kubectl", "run kubectl against the cluster: kubectl -- get pods -A")
    kubectl.add_argument("arguments", nargs=argparse.REMAINDER)
    kubectl.set_defaults(run=_kubectl)


def _up(layout: Layout, arguments: argparse.Namespace) -> int:
    if context := external.chosen_context():
        print(f"using context {context}: Kubernetes {external.check(context)}; nothing is made")
        return 0
    lifecycle.up(layout, arguments.binaries, Progress())
    return 0


def _down(layout: Layout, arguments: argparse.Namespace) -> int:
    if context := external.chosen_context():
        print(f"context {context} was not made here: left as it is")
        return 0
    lifecycle.down(layout, Progress())
    return 0


def _leftovers(layout: Layout, arguments: argparse.Namespace) -> int:
    found = leftovers.leftovers(layout)
    print("\n".join(found) or "nothing is left")
    return 1 if found else 0


def _load_image(layout: Layout, arguments: argparse.Namespace) -> int:
    context = external.chosen_context()
    for image in arguments.image:
        print(external.load_image(context, image) if context else images.load(_containerd(layout), image))
    return 0


def _containerd(layout: Layout) -> images.Containerd:
    tools = packages.unpacked_tools(layout.cache)
    if tools is None or not layout.containerd_socket.exists():
        raise ClusterError("no cluster here; `up` makes one", exit_code=3)
    return images.Containerd(tools.ctr, layout.containerd_socket)


def _api(layout: Layout, verb: str) -> Api:
    if context := external.chosen_context():
        raise external.refuse(verb, context)
    return Api.from_kubeconfig(_existing_kubeconfig(layout))


def _existing_kubeconfig(layout: Layout) -> Path:
    if not layout.kubeconfig.exists():
        raise ClusterError("no cluster here; `up` makes one", exit_code=3)
    return layout.kubeconfig


def _volume(layout: Layout, arguments: argparse.Namespace) -> int:
    with _api(layout, "volume") as api:
        print(volumes.add(api, arguments.volume, arguments.folder, arguments.capacity, arguments.claim))
    return 0


def _wanted_gpus(arguments: argparse.Namespace, count: int, mig: tuple[tuple[str, int], ...] = ()) -> nodes.Gpus:
    if count < 0 or arguments.memory <= 0:
        raise UsageError(f"GPUs: {count} of {arguments.memory} MiB; the number must be at least 0, the memory above 0")
    return nodes.Gpus(arguments.product, count, arguments.memory, mig)


def _nodes_add(layout: Layout, arguments: argparse.Namespace) -> int:
    mig = tuple(nodes.parse_mig(text) for text in arguments.mig)
    gpus = _wanted_gpus(arguments, arguments.gpus, mig) if arguments.gpus or mig else None
    if arguments.count < 1:
        raise UsageError(f"--count {arguments.count}: at least 1")
    with _api(layout, "nodes add") as api:
        added = nodes.add(api, arguments.count, arguments.prefix, gpus, arguments.cpu, arguments.node_memory)
    print("added: " + ", ".join(added))
    return 0


def _nodes_remove(layout: Layout, arguments: argparse.Namespace) -> int:
    with _api(layout, "nodes remove") as api:
        removed = nodes.remove(api, arguments.node)
    print("removed: " + (", ".join(removed) or "none, as there are none"))
    return 0


def _gpus(layout: Layout, arguments: argparse.Namespace) -> int:
    with _api(layout, "gpus") as api:
        nodes.claim_gpus(api, layout.node_name, _wanted_gpus(arguments, arguments.count))
    print(f"{layout.node_name}: {nodes.GPU}: {arguments.count}")
    return 0


def _status(layout: Layout, arguments: argparse.Namespace) -> int:
    if context := external.chosen_context():
        print(f"context {context}: Kubernetes {external.check(context)}")
        print(external.kubectl(context, "get", "nodes", "--output=wide"), end="")
        return 0
    return 0 if status.show(layout) else 1


def _kubeconfig(layout: Layout, arguments: argparse.Namespace) -> int:
    print(external.kubeconfig_path() if external.chosen_context() else _existing_kubeconfig(layout))
    return 0


def _logs(layout: Layout, arguments: argparse.Namespace) -> int:
    if context := external.chosen_context():
        raise external.refuse("logs", context)
    status.print_logs(layout, arguments.component, arguments.lines, follow=arguments.follow)
    return 0


def _kubectl(layout: Layout, arguments: argparse.Namespace) -> int:
    words = arguments.arguments[1:] if arguments.arguments[:1] == ["--"] else arguments.arguments
    if context := external.chosen_context():
        os.execvp("kubectl", ["kubectl", "--context", context, *words])
    os.execvp("kubectl", ["kubectl", "--kubeconfig", str(_existing_kubeconfig(layout)), *words])


def main(argv: list[str] | None = None) -> int:
    """Runs a verb; returns the exit status."""
    arguments = parser().parse_args(argv)
    try:
        status_code: int = arguments.run(layout_for(arguments.name), arguments)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return status_code


if __name__ == "__main__":
    sys.exit(main())
