"""Runs a verb of the command line: `python -m e2e.cluster VERB`."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from e2e.cluster import external, images, leftovers, lifecycle, nodes, packages, status, volumes
from e2e.cluster.api import Api
from e2e.cluster.cli import parser
from e2e.cluster.errors import ClusterError, UsageError
from e2e.cluster.layout import Layout, layout_for
from e2e.cluster.progress import Progress


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


VERBS: dict[str, Callable[[Layout, argparse.Namespace], int]] = {
    "up": _up,
    "down": _down,
    "leftovers": _leftovers,
    "load-image": _load_image,
    "volume": _volume,
    "nodes add": _nodes_add,
    "nodes remove": _nodes_remove,
    "gpus": _gpus,
    "status": _status,
    "kubeconfig": _kubeconfig,
    "logs": _logs,
    "kubectl": _kubectl,
}


def main(argv: list[str] | None = None) -> int:
    """Runs a verb; returns the exit status."""
    arguments = parser().parse_args(argv)
    verb = f"nodes {arguments.action}" if arguments.verb == "nodes" else arguments.verb
    try:
        return VERBS[verb](layout_for(arguments.name), arguments)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # a full disk, a forbidden mount: the machine's words are enough
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
