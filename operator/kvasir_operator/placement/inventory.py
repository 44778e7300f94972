"""What nodes offer and who has it: devices by node, and which of them a pod may use by its own demands.

A pod's demands are read from its manifest and judged as the scheduler does, so that a service's own affinity counts as
much as what `spec.accelerator` asks for. Pods that are no replica of a service are not seen: what is left of a node's
devices is therefore an upper bound, and is told as one.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from kvasir_operator.api.kubernetes import parse_quantity
from kvasir_operator.resources import names

Manifest = Mapping[str, Any]
Test = Callable[[str | None, Sequence[str]], bool]

MEBIBYTE: Final = 2**20


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A node as far as devices are concerned. `devices` is what it offers to pods, by resource."""

    name: str
    labels: Mapping[str, str]
    devices: Mapping[str, int]
    taints: tuple[Manifest, ...] = ()

    @property
    def product(self) -> str:
        """As GPU feature discovery names it; empty where it does not run."""
        return self.labels.get(names.GPU_PRODUCT_LABEL, "")

    def memory(self, resource: str) -> int | None:
        """Bytes of one device, or of one slice of it; None where no label says so."""
        slice_label = f"{resource}.memory" if resource.startswith(names.MIG_PREFIX) else names.GPU_MEMORY_LABEL
        text = self.labels.get(slice_label, "")
        return int(text) * MEBIBYTE if text.isdecimal() else None


@dataclass(frozen=True, slots=True)
class DeviceDemand:
    """The devices that one pod needs on one node, and which nodes it may go to.

    `terms` are alternatives, each a list of requirements that must all hold; none: every node will do.
    """

    resource: str
    count: int
    selector: Mapping[str, str]
    terms: tuple[Manifest, ...] = ()
    tolerations: tuple[Manifest, ...] = ()

    def accepts(self, node: DeviceNode) -> bool:
        """Whether the pod may go to the node, if there is room."""
        if node.devices.get(self.resource, 0) < self.count:
            return False
        if any(node.labels.get(key) != value for key, value in self.selector.items()):
            return False
        if self.terms and not any(_term_holds(term, node) for term in self.terms):
            return False
        return all(self._tolerates(taint) for taint in node.taints if taint.get("effect") in _REPELLING)

    def _tolerates(self, taint: Manifest) -> bool:
        return any(_tolerated(taint, each) for each in self.tolerations)


@dataclass(frozen=True, slots=True)
class Claim:
    """Devices that a replica of a service has on a node."""

    service: str
    node: str
    resource: str
    count: int


@dataclass(frozen=True)
class Inventory:
    """The nodes with devices, and what replicas have of them."""

    nodes: tuple[DeviceNode, ...]
    claims: tuple[Claim, ...]

    def suitable(self, demand: DeviceDemand) -> list[DeviceNode]:
        """Nodes that the pod may go to, with room or without."""
        return [node for node in self.nodes if demand.accepts(node)]

    def left(self, node: DeviceNode, resource: str) -> int:
        """Devices of a node that no replica has; other pods may have some of them."""
        return max(0, node.devices.get(resource, 0) - self._taken[node.name, resource])

    def holders(self, nodes: Iterable[DeviceNode], resource: str) -> list[tuple[str, int]]:
        """Services with devices on these nodes and how many, those with most first."""
        wanted = {node.name for node in nodes}
        held: Counter[str] = Counter()
        for claim in self.claims:
            if claim.node in wanted and claim.resource == resource:
                held[claim.service] += claim.count
        return sorted(held.items(), key=lambda item: (-item[1], item[0]))

    @cached_property
    def _taken(self) -> Counter[tuple[str, str]]:
        taken: Counter[tuple[str, str]] = Counter()
        for claim in self.claims:
            taken[claim.node, claim.resource] += claim.count
        return taken


def read_node(manifest: Manifest) -> DeviceNode:
    """Read a node; one that is cordoned bears a taint that says so, from Kubernetes itself."""
    offered = manifest.get("status", {}).get("allocatable") or {}
    return DeviceNode(
        name=manifest["metadata"]["name"],
        labels=manifest["metadata"].get("labels") or {},
        devices={resource: _whole(amount) for resource, amount in offered.items() if is_device(resource)},
        taints=tuple(manifest.get("spec", {}).get("taints") or ()),
    )


def read_demand(spec: Manifest) -> DeviceDemand | None:
    """Read what a pod's spec asks of nodes; None for a pod without devices."""
    devices = devices_of(spec)
    if not devices:
        return None
    resource, count = next(iter(sorted(devices.items())))
    node_affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = node_affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    return DeviceDemand(
        resource=resource,
        count=count,
        selector=spec.get("nodeSelector") or {},
        terms=tuple(required.get("nodeSelectorTerms") or ()),
        tolerations=tuple(spec.get("tolerations") or ()),
    )


def devices_of(spec: Manifest) -> dict[str, int]:
    """Devices that a pod's containers ask for, by resource."""
    found: Counter[str] = Counter()
    for container in spec.get("containers") or ():
        limits = (container.get("resources") or {}).get("limits") or {}
        found.update({resource: _whole(amount) for resource, amount in limits.items() if is_device(resource)})
    return {resource: count for resource, count in found.items() if count > 0}


def is_device(resource: str) -> bool:
    """Whether a resource is one that device plugins offer: these bear a vendor's domain."""
    domain, slash, _ = resource.partition("/")
    return bool(slash) and domain != "kubernetes.io" and not domain.endswith(".kubernetes.io")


# --- What the scheduler checks ----------------------------------------------------------------------------------------

_REPELLING: Final = frozenset({"NoSchedule", "NoExecute"})


def _tolerated(taint: Manifest, toleration: Manifest) -> bool:
    if toleration.get("effect") not in (None, "", taint.get("effect")):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", taint["key"])
    return toleration.get("key") == taint["key"] and (toleration.get("value") or "") == (taint.get("value") or "")


def _term_holds(term: Manifest, node: DeviceNode) -> bool:
    """A term without requirements holds nowhere, as in Kubernetes."""
    labels, fields = term.get("matchExpressions") or (), term.get("matchFields") or ()
    if not labels and not fields:
        return False
    on_labels = all(_holds(each, node.labels.get(each["key"])) for each in labels)
    return on_labels and all(_holds(each, node.name) for each in fields)


def _holds(requirement: Manifest, value: str | None) -> bool:
    test = _TESTS.get(requirement["operator"])
    return test is not None and test(value, requirement.get("values") or ())


def _compare(value: str | None, limits: Sequence[str], sign: int) -> bool:
    """Numbers alone can be compared; a label that is none does not match."""
    if value is None or not value.lstrip("-").isdecimal() or not limits:
        return False
    return sign * int(value) > sign * int(limits[0])


_TESTS: Final[Mapping[str, Test]] = {
    "In": lambda value, values: value in values,
    "NotIn": lambda value, values: value not in values,
    "Exists": lambda value, _: value is not None,
    "DoesNotExist": lambda value, _: value is None,
    "Gt": lambda value, limits: _compare(value, limits, 1),
    "Lt": lambda value, limits: _compare(value, limits, -1),
}


def _whole(amount: int | str) -> int:
    quantity = parse_quantity(amount)
    return int(quantity) if quantity is not None else 0
