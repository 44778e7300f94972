"""Who waits for devices, behind whom, and who has them."""

from datetime import UTC, datetime, timedelta

import pytest

from kvasir_operator.placement.inventory import Claim, DeviceDemand, Inventory, read_node
from kvasir_operator.placement.queue import Waiter, first_of_each, standing_of
from tests.kvasir_operator.placement.nodes import GPU, gpu_node

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
L4, A100 = "NVIDIA-L4", "NVIDIA-A100-SXM4-80GB"
NODES = tuple(map(read_node, (gpu_node("l4-1", L4, 4), gpu_node("l4-2", L4, 2), gpu_node("a100", A100, 8))))


def demand(count: int = 1, product: str = L4, resource: str = GPU) -> DeviceDemand:
    return DeviceDemand(resource, count, {"nvidia.com/gpu.product": product})


def waiter(name: str, count: int = 1, *, age: int = 0, priority: int = 0, product: str = L4) -> Waiter:
    return Waiter(f"team/{name}", demand(count, product), priority, NOW - timedelta(seconds=age))


def told(name: str, waiters: list[Waiter], *claims: Claim) -> str:
    standing = standing_of(f"team/{name}", first_of_each(waiters), Inventory(NODES, claims))
    assert standing is not None
    return standing.message


def test_the_order_is_that_of_the_scheduler() -> None:
    """Priority first, then age; each service has its first pod's place."""
    waiters = [
        waiter("young", age=1),
        waiter("old", age=9),
        waiter("urgent", age=0, priority=10),
        waiter("old", age=2),
        waiter("aged", age=9),
    ]
    assert [each.service for each in first_of_each(waiters)] == ["team/urgent", "team/aged", "team/old", "team/young"]


def test_the_message_says_what_is_missing_who_has_it_and_the_place() -> None:
    claims = (Claim("team/a", "l4-1", GPU, 3), Claim("team/b", "l4-2", GPU, 2), Claim("team/c", "a100", GPU, 8))
    waiters = [waiter("me", 2, age=1), waiter("first", age=5), waiter("last", age=0)]
    assert told("me", waiters, *claims) == (
        "a replica needs 2 nvidia.com/gpu of one node; the 2 nodes that it may use have 6, at most 1 left on one; "
        "team/a has 3, team/b has 2; place 2 in the queue, after team/first"
    )


def test_who_comes_later_changes_nothing() -> None:
    """A message that told of those behind would be written anew with each of them."""
    waiters = [waiter("me", age=1), waiter("first", age=5)]
    assert told("me", waiters) == told("me", [*waiters, waiter("last", age=0)])


def test_those_who_want_other_nodes_are_not_in_the_way() -> None:
    waiters = [waiter("me"), waiter("other", age=9, product=A100), waiter("rival", age=9)]
    assert told("me", waiters).endswith("place 2 in the queue, after team/rival")


def test_many_are_told_by_their_number() -> None:
    waiters = [waiter("me"), *(waiter(f"w{number}", age=10 - number) for number in range(5))]
    claims = [Claim(f"team/h{number}", "l4-1", GPU, 1) for number in range(4)]
    text = told("me", waiters, *claims)
    assert "team/h0 has 1, team/h1 has 1, team/h2 has 1 and 1 more" in text
    assert text.endswith("place 6 in the queue, after team/w0, team/w1, team/w2 and 2 more")


def test_a_demand_that_no_node_can_meet_says_so() -> None:
    text = told("me", [waiter("me", 16)])
    assert text == (
        "a replica needs 16 nvidia.com/gpu of one node, and no node that it may use has so many; place 1 in the queue"
    )


@pytest.mark.parametrize("waiters", [[], [waiter("other")]])
def test_who_does_not_wait_has_no_place(waiters: list[Waiter]) -> None:
    assert standing_of("team/me", waiters, Inventory(NODES, ())) is None
