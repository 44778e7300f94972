"""On which product a new replica is placed: the cheapest on which it fits and for which there is room now.

| a product on which it fits has room | then the pod may go to                                            |
|-------------------------------------|-------------------------------------------------------------------|
| yes                                 | the cheapest of those alone                                       |
| none has                            | any on which it fits: it waits for the first that becomes free    |

A pod that was placed on one product, and finds that taken by another's, is made anew when another product has room.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kvasir_operator.placement.inventory import DeviceDemand, Inventory


@dataclass(frozen=True, slots=True)
class Room:
    """How many more replicas the nodes of a product have devices for, as far as is known."""

    product: str
    replicas: int


def rooms_of(products: Iterable[str], demand: DeviceDemand, inventory: Inventory) -> tuple[Room, ...]:
    """Room by product, in the order of `products`."""
    nodes = inventory.suitable(demand)
    return tuple(
        Room(
            product,
            sum(inventory.left(node, demand.resource) // demand.count for node in nodes if node.product == product),
        )
        for product in products
    )


def choose_products(rooms: Sequence[Room], replicas: int) -> list[tuple[str, ...]]:
    """For each of so many new replicas the products that it may go to; empty: any at all."""
    free = [room.product for room in rooms for _ in range(min(room.replicas, replicas))]
    waiting = tuple(room.product for room in rooms)
    return [(free[number],) if number < len(free) else waiting for number in range(replicas)]


def is_misplaced(allowed: Sequence[str], rooms: Sequence[Room]) -> bool:
    """Whether a pod that waits for one of `allowed` would find room elsewhere."""
    if not allowed or not rooms:
        return False
    free = {room.product for room in rooms if room.replicas > 0}
    return bool(free) and free.isdisjoint(allowed)
