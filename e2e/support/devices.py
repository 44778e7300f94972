"""Devices that only the API knows, on nodes without a machine and on the real one."""

from collections.abc import Iterator
from contextlib import contextmanager

from e2e.support.environment import program
from e2e.support.kubectl import Kubectl, Object

API_ONLY = "kvasir.dev/api-only"
"""Label and taint of nodes without a machine; a program of the cluster keeps nodes with that label Ready."""
TOLERATION: Object = {"key": API_ONLY, "operator": "Exists"}


@contextmanager
def nodes(prefix: str, *words: str) -> Iterator[str]:
    """A node of the API alone for as long as the block runs, with the pods bound to it; yields its name."""
    program("e2e.cluster", "nodes", "add", "--prefix", prefix, *words)
    try:
        yield f"{prefix}-1"
    finally:
        program("e2e.cluster", "nodes", "remove", f"{prefix}-1")


@contextmanager
def gpus_of_the_real_node(count: int) -> Iterator[None]:
    program("e2e.cluster", "gpus", str(count), "--product", "NVIDIA-L4", "--memory", "23034")
    try:
        yield
    finally:
        program("e2e.cluster", "gpus", "0")


@contextmanager
def silenced(kubectl: Kubectl, node: str) -> Iterator[None]:
    """A node without a machine whose Lease nobody renews: after 40 s it counts as unreachable."""
    kubectl.run("label", "node", node, f"{API_ONLY}-")
    try:
        yield
    finally:
        kubectl.run("label", "node", node, f"{API_ONLY}=true")
