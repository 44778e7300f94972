"""Services that start together: the table of roles, and what never happens in any cluster."""

import itertools
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvasir_operator.grouping import TURNED_AWAY_AFTER, Attempts
from kvasir_operator.placement.groups import ALONE, Member, Role, decide
from kvasir_operator.placement.inventory import Claim, DeviceDemand, Inventory, read_node
from tests.kvasir_operator.placement.nodes import GPU, gpu_node

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def member(
    service: str, count: int = 1, *, group: str = "team/rag", size: int = 2, age: int = 0, **more: Any
) -> Member:
    """Needs `count` devices; 0: none."""
    demand = DeviceDemand(GPU, count, more.pop("selector", {})) if count else None
    fields: dict[str, Any] = {"priority": 0, "since": NOW - timedelta(seconds=age)} | more
    return Member(service, group, size, demand, **fields)


def cluster(*taken: int, **nodes: int) -> Inventory:
    """Nodes with so many devices, of which `taken` are others' on the first ones."""
    found = tuple(read_node(gpu_node(name, count=count)) for name, count in nodes.items())
    return Inventory(found, tuple(Claim("other", name, GPU, count) for name, count in zip(nodes, taken, strict=False)))


def roles(members: list[Member], inventory: Inventory) -> dict[str, Role]:
    return {service: turn.role for service, turn in decide(members, inventory).turns.items()}


FREE, FIRST, LACKS, WAITS = Role.FREE, Role.FIRST, Role.LACKS, Role.WAITS

TABLE = [
    ("both fit", [member("a"), member("b")], cluster(a=2), [FIRST, FIRST]),
    ("one alone would fit", [member("a"), member("b", 2)], cluster(2, a=4), [WAITS, WAITS]),
    ("on two nodes", [member("a", 2), member("b", 2)], cluster(a=2, b=2), [FIRST, FIRST]),
    ("whole on one node each", [member("a", 2), member("b", 2)], cluster(a=3, b=1), [WAITS, WAITS]),
    ("nothing is there", [member("a"), member("b")], cluster(), [LACKS, LACKS]),
    ("too few services", [member("a")], cluster(a=4), [WAITS]),
    ("the larger size counts", [member("a", size=3), member("b")], cluster(a=4), [WAITS, WAITS]),
    ("more services than said", [member(name) for name in "abc"], cluster(a=2), [WAITS, WAITS, WAITS]),
    ("one has its node", [member("a", placed=True), member("b")], cluster(1, a=2), [FIRST, FIRST]),
    ("one has its node, no other is left", [member("a", placed=True), member("b")], cluster(2, a=2), [WAITS, LACKS]),
    ("both have their nodes", [member("a", placed=True), member("b", placed=True)], cluster(2, a=2), [FREE, FREE]),
    ("all but one serve", [member("a", placed=True, serves=True), member("b")], cluster(1, a=1), [FREE, FREE]),
    (
        "one of three serves",
        [member("a", serves=True, size=3), member("b"), member("c")],
        cluster(a=2),
        [FREE, FIRST, FIRST],
    ),
    ("one serves, the others are missing", [member("a", serves=True)], cluster(a=1), [FREE]),
    (
        "one wants no replicas",
        [member("a", wanted=False), member("b"), member("c")],
        cluster(a=2),
        [FREE, FIRST, FIRST],
    ),
    ("no node has as many", [member("a"), member("b", 4)], cluster(a=2), [WAITS, LACKS]),
    ("one needs no devices", [member("a", 0), member("b")], cluster(a=1), [FIRST, FIRST]),
    ("the one with devices lacks", [member("a", 0), member("b")], cluster(1, a=1), [WAITS, LACKS]),
    (
        "who has the fewest nodes to choose from chooses first",
        [member("a"), member("b", selector={"kubernetes.io/hostname": "a"})],
        cluster(a=1, b=1),
        [FIRST, FIRST],
    ),
]


@pytest.mark.parametrize(
    ("members", "inventory", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_roles(members: list[Member], inventory: Inventory, expected: list[Role]) -> None:
    """The table of the module, and packing."""
    assert list(roles(members, inventory).values()) == expected


def test_of_two_groups_that_fit_alone_the_first_starts() -> None:
    """By priority, then by age; the second one counts on nothing that the first will take."""
    first = [member("a", age=9), member("b")]
    second = [member("c", group="team/other"), member("d", group="team/other", age=5)]
    assert roles([*second, *first], cluster(a=3)) == {"a": FIRST, "b": FIRST, "c": WAITS, "d": WAITS}
    urgent = [member(each.service, group=each.group, priority=1) for each in second]
    assert roles([*urgent, *first], cluster(a=3))["c"] is FIRST
    assert roles([*second, *first], cluster(a=4))["c"] is FIRST


def test_a_group_that_cannot_start_keeps_nothing_from_the_next() -> None:
    large, small = (
        [member("a", 4, age=9), member("b")],
        [member("c", group="team/small"), member("d", group="team/small")],
    )
    assert roles([*large, *small], cluster(a=4)) == {"a": WAITS, "b": WAITS, "c": FIRST, "d": FIRST}


def test_groups_of_other_namespaces_are_others() -> None:
    assert roles([member("a", group="x/rag"), member("b", group="y/rag")], cluster(a=4)) == {"a": WAITS, "b": WAITS}


def test_what_people_are_told() -> None:
    few = decide([member("team/a", size=3)], cluster()).turns["team/a"]
    assert few.message == "group rag has 1 of its 3 services with a valid spec; they start together"
    lacking = decide([member("team/a"), member("team/b", 2)], cluster(2, a=4)).turns
    assert {turn.message for turn in lacking.values()} == {
        "group rag starts when all of its services can: not yet team/a"
    }


def test_a_group_that_was_given_up_waits_though_it_seems_to_fit() -> None:
    """Those that serve go on."""
    members = [member("a", serves=True, placed=True, size=3), member("b"), member("d")]
    found = decide(members, cluster(a=9), {"team/rag": "b"}).turns
    assert [found[name].role for name in "abd"] == [FREE, WAITS, WAITS]
    assert found["b"].message == (
        "group rag starts when all of its services can: no node was found for b; tried again later"
    )


ROOMY = cluster(a=4)


def test_who_fits_nowhere_was_not_turned_away() -> None:
    """Its pod waits for a node: nothing was tried."""
    attempts, waiting = Attempts(), [member("a"), member("b", turned_away=True)]
    assert attempts.given_up(waiting, cluster(4, a=4), 1, NOW) == {}
    assert attempts.given_up(waiting, cluster(3, a=4), 1, NOW) == {"team/rag": "b"}


def test_attempts_are_made_ever_more_rarely() -> None:
    """30 s after the first, then twice as long each time, up to five minutes; and at once when something changes."""
    attempts, now, waits = Attempts(), NOW, []
    failed = [member("a"), member("b", turned_away=True)]
    for _ in range(6):
        assert attempts.given_up(failed, ROOMY, 1, now) == {"team/rag": "b"}
        due = attempts.due(now)
        assert due is not None
        waits.append((due - now).total_seconds())
        assert attempts.given_up(failed, ROOMY, 1, due - timedelta(seconds=1)) == {"team/rag": "b"}
        assert attempts.given_up(failed, ROOMY, 1, due) == {}, "what is seen is still that of the last attempt"
        now = due + TURNED_AWAY_AFTER
    assert waits == [30, 60, 120, 240, 300, 300]
    assert attempts.given_up([member("a"), member("b", generation=2)], ROOMY, 1, now) == {}
    attempts.given_up(failed, ROOMY, 1, now)
    assert attempts.given_up([member("a"), member("b")], ROOMY, 2, now) == {}
    attempts.given_up(failed, ROOMY, 2, now)
    assert attempts.given_up([member("a", placed=True), member("b", placed=True)], ROOMY, 2, now) == {}
    assert attempts.due(now) is None


def test_devices_are_asked_for_together_or_not_at_all() -> None:
    """For preemption: what is missing, unless devices would not help."""
    [party] = decide([member("a", placed=True), member("b", 2), member("c", 0)], cluster()).parties
    assert [(each.service, each.demand.count) for each in party] == [("b", 2)]
    assert decide([member("a")], cluster()).parties == ()
    assert decide([member("a", serves=True), member("b")], cluster()).parties == (), "it waits as a service of its own"
    assert decide([member("a"), member("b", turned_away=True, helpless=True)], cluster()).parties == ()
    assert len(decide([member("a"), member("b", turned_away=True)], cluster()).parties[0]) == 2


MEMBERS = st.lists(
    st.builds(
        lambda group, count, age, **flags: (group, count, age, flags),
        st.integers(0, 2),
        st.integers(0, 3),
        st.integers(0, 3),
        wanted=st.booleans(),
        placed=st.booleans(),
        turned_away=st.booleans(),
    ),
    max_size=6,
)


@given(
    found=MEMBERS,
    nodes=st.lists(st.integers(0, 4), max_size=3),
    sizes=st.lists(st.integers(1, 3), min_size=3, max_size=3),
)
def test_all_or_nothing(found: list[Any], nodes: list[int], sizes: list[int]) -> None:
    """Whoever starts fits beside all others that start; a group that is not whole starts as one or not at all."""
    members = [
        member(f"s{number}", count, group=f"team/{group}", size=sizes[group], age=age, **flags)
        for number, (group, count, age, flags) in enumerate(found)
    ]
    inventory = cluster(**{f"n{number}": count for number, count in enumerate(nodes)})
    decided = decide(members, inventory).turns
    assert decided.keys() == {each.service for each in members}
    starting = [each for each in members if decided[each.service].role is FIRST and not each.placed]
    assert fit_at_once([each.demand.count for each in starting if each.demand is not None], nodes)
    for group in {each.group for each in members}:
        own = {each.service: decided[each.service] for each in members if each.group == group}
        kinds = Counter(turn.role for turn in own.values())
        assert not (kinds[FIRST] and kinds[WAITS] + kinds[LACKS])
        assert all(bool(turn.message) == (turn.role in (WAITS, LACKS)) for turn in own.values())
        few = len(own) < sizes[int(group[-1])]
        missing = [each for each in members if each.group == group and each.wanted and not each.placed]
        alone = not missing or sum(each.wanted for each in members if each.group == group) < 2
        assert few or all(turn == ALONE for turn in own.values()) == alone


def fit_at_once(counts: list[int], nodes: list[int]) -> bool:
    """Whether each can have all its devices of one node; by trying everything."""
    for choice in itertools.product(range(len(nodes)), repeat=len(counts)):
        used: Counter[int] = Counter()
        for node, count in zip(choice, counts, strict=True):
            used[node] += count
        if all(used[node] <= nodes[node] for node in used):
            return True
    return not counts
