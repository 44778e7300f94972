"""Who gives devices to whom: tables of small clusters, and what never happens in any."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kvasir_operator.placement.inventory import Claim, DeviceDemand, Inventory, read_node
from kvasir_operator.placement.preemption import Holder, Rank, Settlement, settle
from kvasir_operator.placement.queue import Waiter
from tests.kvasir_operator.placement.nodes import GPU, gpu_node

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def waiter(service: str, count: int = 1, *, priority: int = 10, age: int = 0, node: str = "") -> Waiter:
    selector = {"kubernetes.io/hostname": node} if node else {}
    return Waiter(service, DeviceDemand(GPU, count, selector), priority, NOW - timedelta(seconds=age))


def holder(uid: str, node: str = "a", count: int = 1, *, age: int = 0, **more: Any) -> Holder:
    """`batch-1` is a replica of `batch`."""
    return Holder(uid, uid.rpartition("-")[0], node, GPU, count, NOW - timedelta(seconds=age), **more)


def settled(
    waiters: list[Waiter], holders: list[Holder], ranks: dict[str, Rank], nodes: dict[str, int] | None = None
) -> Settlement:
    found = tuple(read_node(gpu_node(name, count=count)) for name, count in (nodes or {"a": 4}).items())
    claims = tuple(Claim(each.service, each.node, each.resource, each.count) for each in holders)
    return settle(waiters, Inventory(found, claims), holders, ranks)


def four(service: str = "batch", **more: Any) -> list[Holder]:
    """Four replicas, the last the youngest."""
    return [holder(f"{service}-{number}", age=100 - number, **more) for number in range(4)]


BATCH = {"batch": Rank(priority=0, floor=1), "chat": Rank(priority=10, floor=1)}


def test_the_youngest_of_a_lower_priority_give_as_many_as_are_needed() -> None:
    assert settled([waiter("chat", 2)], four(), BATCH).yields == {"batch-3": "chat", "batch-2": "chat"}


def test_those_that_do_not_serve_go_first() -> None:
    holders = [holder("batch-0", age=9), holder("batch-1", age=1, serving=True), holder("batch-2", age=0, serving=True)]
    assert set(settled([waiter("chat", 2)], holders, BATCH).yields) == {"batch-0"}


def test_the_floor_is_kept() -> None:
    """Three are needed and only two may be taken: nobody is drained in vain."""
    ranks = BATCH | {"batch": Rank(0, floor=2)}
    assert settled([waiter("chat", 3)], four(), ranks) == Settlement()
    assert len(settled([waiter("chat", 2)], four(), ranks).yields) == 2


def test_equal_and_higher_priorities_give_nothing() -> None:
    for priority in (10, 11):
        assert settled([waiter("chat")], four(), BATCH | {"batch": Rank(priority, 0)}) == Settlement()


def test_a_service_that_is_not_known_gives_nothing() -> None:
    assert settled([waiter("chat")], four(), {}) == Settlement()


def test_who_lacks_something_else_gets_no_devices_and_keeps_none() -> None:
    """Devices would not help a replica for which the nodes have not enough memory."""
    unhelped = replace(waiter("chat", 2), lacks_devices=False)
    assert settled([unhelped], four(), BATCH) == Settlement()


def test_devices_that_are_left_are_taken_before_anybody_drains() -> None:
    """The scheduler is about to place it; the devices are kept for it all the same."""
    found = settled([waiter("chat", 2)], four()[:2], BATCH)
    assert found.yields == {}
    assert [(each.waiter.service, each.node.name, each.left) for each in found.reservations] == [("chat", "a", 0)]


def test_those_that_leave_anyway_count_before_others_are_drained() -> None:
    """Planned again while the drain runs, the same replica is meant: it is not called back, and no other one drains."""
    holders = [*four()[:3], holder("batch-3", leaving=True)]
    assert settled([waiter("chat", 1)], holders, BATCH).yields == {"batch-3": "chat"}


def test_the_node_with_the_lowest_priority_is_taken_then_the_one_with_fewest_to_drain() -> None:
    ranks = {"low": Rank(0, 0), "middle": Rank(5, 0), "chat": Rank(10, 1)}
    nodes = {"a": 2, "b": 2, "c": 2}
    cheap = [holder("middle-0", "a", 2), holder("low-0", "b"), holder("low-1", "b"), holder("low-2", "c", 2)]
    assert set(settled([waiter("chat", 2)], cheap, ranks, nodes).yields) == {"low-2"}
    dear = [*cheap[:3], holder("middle-1", "c", 2)]
    assert set(settled([waiter("chat", 2)], dear, ranks, nodes).yields) == {"low-0", "low-1"}
    assert set(settled([waiter("chat", 2, node="a")], cheap, ranks, nodes).yields) == {"middle-0"}


def test_a_replica_is_placed_whole_or_not_at_all() -> None:
    """Two devices on each of two nodes are no four of one node."""
    holders = [holder("batch-0", "a", 2), holder("batch-1", "b", 2)]
    ranks = {"batch": Rank(0, 0), "chat": Rank(10, 1)}
    assert settled([waiter("chat", 4)], holders, ranks, {"a": 2, "b": 2}) == Settlement()


def test_two_that_wait_do_not_count_on_the_same_devices() -> None:
    ranks = BATCH | {"talk": Rank(9, 1)}
    found = settled([waiter("chat", 2), waiter("talk", 2, priority=9)], four(), ranks | {"batch": Rank(0, 0)})
    assert found.yields == {"batch-3": "chat", "batch-2": "chat", "batch-1": "talk", "batch-0": "talk"}
    limited = settled([waiter("chat", 2), waiter("talk", 2, priority=9)], four(), ranks)
    assert set(limited.yields.values()) == {"chat"}


def test_what_is_freed_is_kept_from_those_of_a_lower_priority() -> None:
    """Of equal priority the scheduler decides; on another node there is nothing to keep."""
    found = settled([waiter("chat", 2)], four()[:3], BATCH, {"a": 4, "b": 1})
    anywhere, on_b = DeviceDemand(GPU, 1, {}), DeviceDemand(GPU, 1, {"kubernetes.io/hostname": "b"})
    reservation = found.excluding(0, anywhere)
    assert reservation is not None
    assert reservation.waiter.service == "chat"
    assert found.excluding(10, anywhere) is None
    assert found.excluding(0, on_b) is None


def test_more_than_is_kept_may_be_used() -> None:
    found = settled([waiter("chat", 2)], [], BATCH)
    assert found.excluding(0, DeviceDemand(GPU, 2, {})) is None
    assert found.excluding(0, DeviceDemand(GPU, 3, {})) is not None


SERVICES = ("a", "b", "c", "d")


@given(
    nodes=st.lists(st.integers(1, 8), min_size=1, max_size=3),
    pods=st.lists(
        st.tuples(st.sampled_from(SERVICES), st.integers(0, 2), st.integers(1, 4), st.booleans(), st.booleans()),
        max_size=12,
    ),
    ranks=st.fixed_dictionaries({name: st.builds(Rank, st.integers(0, 3), st.integers(0, 3)) for name in SERVICES}),
    wanted=st.lists(st.tuples(st.sampled_from(SERVICES), st.integers(1, 8)), max_size=4),
)
def test_nobody_gives_what_he_need_not(nodes, pods, ranks, wanted) -> None:
    """In any cluster: only of lower priorities, never below a floor, never for one that then does not fit."""
    sizes = {f"n{number}": count for number, count in enumerate(nodes)}
    holders, room = [], dict(sizes)
    for number, (service, place, count, serving, leaving) in enumerate(pods):
        node = f"n{place}"
        if room.get(node, 0) >= count:
            room[node] -= count
            holders.append(holder(f"{service}-{number}", node, count, serving=serving, leaving=leaving))
    waiters = [waiter(service, count, priority=ranks[service].priority) for service, count in wanted]
    found = settled(sorted(waiters, key=lambda each: each.rank), holders, ranks, sizes)
    by_uid = {each.uid: each for each in holders}
    for uid, taker in found.yields.items():
        assert by_uid[uid].leaving or ranks[by_uid[uid].service].priority < ranks[taker].priority
    for service, rank in ranks.items():
        own = [each for each in holders if each.service == service and not each.leaving]
        given_up = [each for each in own if each.uid in found.yields]
        assert not given_up or len(own) - len(given_up) >= rank.floor
    for node, size in sizes.items():
        kept = [each for each in holders if each.node == node and each.uid not in found.yields]
        placed = [each for each in found.reservations if each.node.name == node]
        if placed:
            used = sum(each.count for each in kept) + sum(each.waiter.demand.count for each in placed)
            assert used <= size
            assert placed[-1].left == size - used
