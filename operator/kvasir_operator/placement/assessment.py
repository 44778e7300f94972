"""Where a model fits: its plan on CPUs, or on the products that its pods may go to, the cheapest of them first.

| the replica runs on                              | then                                                        |
|--------------------------------------------------|-------------------------------------------------------------|
| CPUs, with a memory limit                        | planned with that limit                                     |
| CPUs, without                                    | not planned: what a node has is not the replica's           |
| devices, and no node with such is there          | not planned: a node may come                                |
| devices, of which some have no labels            | planned on the others; refused nowhere, placed anywhere     |
| devices of known memory, the model fits on some  | planned on the cheapest of those, placed on those alone     |
| devices of known memory, it fits on none         | refused, with the numbers for the largest                   |
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kvasir_operator.api.v1alpha1 import InferenceServiceSpec
from kvasir_operator.placement.capacity import Fit, Misfit, memory_limit, plan_capacity
from kvasir_operator.placement.inventory import DeviceNode
from kvasir_operator.settings import Settings
from kvasir_runtime.contract.memory import ModelShape


@dataclass(frozen=True, slots=True)
class Assessment:
    """The plan, where there is one, and the products on which pods may be placed, cheapest first; empty: on any."""

    planned: Fit | Misfit | None = None
    products: tuple[str, ...] = ()


UNKNOWN = Assessment()


def assess(
    spec: InferenceServiceSpec, shape: ModelShape, nodes: Iterable[DeviceNode], settings: Settings
) -> Assessment:
    """Plan a service by the table above. `nodes` are those that its pods may go to, with room or without."""
    resource = spec.accelerator.resource() if spec.accelerator is not None else None
    try:
        if resource is None:
            limit = memory_limit(spec, settings)
            return Assessment(plan_capacity(spec, shape, limit)) if limit is not None else UNKNOWN
        return _on_devices(spec, shape, list(nodes), resource, settings.product_costs)
    except ValueError:  # a type of weights that the formula does not know: the engine will say so
        return UNKNOWN


def least_memories(nodes: Iterable[DeviceNode], resource: str) -> dict[str, int]:
    """Least bytes of one device by product; nodes without labels are left out."""
    found: dict[str, int] = {}
    for node in nodes:
        memory = node.memory(resource)
        if node.product and memory is not None:
            found[node.product] = min(memory, found.get(node.product, memory))
    return found


def by_cost(memories: Mapping[str, int], costs: Mapping[str, float]) -> list[str]:
    """Products, cheapest first: those with a known cost by it, then the others by their memory."""
    return sorted(memories, key=lambda product: (costs.get(product, float("inf")), memories[product], product))


def _on_devices(
    spec: InferenceServiceSpec,
    shape: ModelShape,
    nodes: list[DeviceNode],
    resource: str,
    costs: Mapping[str, float],
) -> Assessment:
    memories = least_memories(nodes, resource)
    if not memories:
        return UNKNOWN
    all_known = all(node.product and node.memory(resource) is not None for node in nodes)
    planned = {product: plan_capacity(spec, shape, memory) for product, memory in memories.items()}
    fitting = [product for product in by_cost(memories, costs) if isinstance(planned[product], Fit)]
    if fitting:
        return Assessment(planned[fitting[0]], tuple(fitting) if all_known else ())
    largest = max(memories, key=lambda product: (memories[product], product))
    return Assessment(planned[largest]) if all_known else UNKNOWN
