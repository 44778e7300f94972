"""Nodes that are being emptied, as they are watched: replicas on them are replaced elsewhere before they go."""

from collections.abc import Mapping
from typing import Any, Final

from kvasir_operator.store import version_of

Manifest = Mapping[str, Any]

LEAVING_TAINTS: Final = frozenset(
    {
        "node.kubernetes.io/unschedulable",  # kubectl cordon, kubectl drain
        "ToBeDeletedByClusterAutoscaler",
        "karpenter.sh/disrupted",
        "node.cloudprovider.kubernetes.io/shutdown",
    }
)
"""Taints of nodes that are cordoned, or about to be taken away."""


class Cordons:
    """Knows which nodes take no new pods because they are to be emptied. Changed by `notice` alone."""

    def __init__(self) -> None:
        self._nodes: dict[str, int] = {}
        self.cordoned: frozenset[str] = frozenset()

    def notice(self, change: str | None, manifest: Manifest) -> str | None:
        """Take in a watch event of a node; returns its name when it was cordoned or uncordoned by it."""
        name, version = manifest["metadata"]["name"], version_of(manifest)
        if change != "DELETED" and version <= self._nodes.get(name, -1):
            return None
        before = name in self.cordoned
        if change == "DELETED":
            self._nodes.pop(name, None)
        else:
            self._nodes[name] = version
        now = change != "DELETED" and is_cordoned(manifest)
        self.cordoned = self.cordoned | {name} if now else self.cordoned - {name}
        return name if now != before else None


def is_cordoned(node: Manifest) -> bool:
    """Whether somebody empties the node, or is about to."""
    spec = node.get("spec") or {}
    taints = {taint.get("key") for taint in spec.get("taints") or ()}
    return bool(spec.get("unschedulable")) or not taints.isdisjoint(LEAVING_TAINTS)
