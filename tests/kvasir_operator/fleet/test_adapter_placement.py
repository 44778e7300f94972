"""Which replica has which adapters when not all fit: promises that hold for every fleet, and worked examples."""

from hypothesis import given, settings
from hypothesis import strategies as st

from kvasir_operator.fleet.adapter_placement import AdapterDemand, Room, place_adapters

FLEETS = st.tuples(
    st.lists(st.tuples(st.floats(0, 1000), st.booleans()), max_size=12),
    st.lists(st.tuples(st.integers(1, 5), st.sets(st.integers(0, 11))), min_size=1, max_size=5),
)


def build(fleet):
    adapters = [AdapterDemand(f"a{index}", demand, pinned) for index, (demand, pinned) in enumerate(fleet[0])]
    rooms = [
        Room(f"r{index}", places, frozenset(f"a{number}" for number in serves))
        for index, (places, serves) in enumerate(fleet[1])
    ]
    return adapters, rooms


@settings(max_examples=150, deadline=None)
@given(FLEETS)
def test_nothing_is_lost(fleet):
    """Every adapter is to be somewhere, and what is served goes on being served until another replica has it."""
    adapters, rooms = build(fleet)
    placed = place_adapters(adapters, rooms, routed=True)
    for adapter in adapters:
        assert any(adapter.name in names for names in placed.values())
        serving = [room for room in rooms if adapter.name in room.serves]
        assert not serving or any(adapter.name in placed[room.replica] for room in serving)


@settings(max_examples=100, deadline=None)
@given(FLEETS)
def test_it_comes_to_rest(fleet):
    """Once each serves what it is to have, nothing moves any more, and nobody has more than its places."""
    adapters, rooms = build(fleet)
    for _ in range(6):
        placed = place_adapters(adapters, rooms, routed=True)
        after = [Room(room.replica, room.places, placed[room.replica]) for room in rooms]
        if after == rooms:
            break
        rooms = after
    assert {room.replica: room.serves for room in rooms} == place_adapters(adapters, rooms, routed=True)
    if len(adapters) <= sum(room.places for room in rooms):
        assert all(len(room.serves) <= room.places for room in rooms)


def test_all_everywhere_without_a_router():
    """A request may come to any replica."""
    adapters, rooms = [AdapterDemand(f"a{index}") for index in range(9)], [Room("r", 2), Room("s", 2)]
    placed = place_adapters(adapters, rooms, routed=False)
    assert placed["r"] == placed["s"] == {adapter.name for adapter in adapters}


def test_demand_decides_who_has_more_places():
    """One adapter that is asked for far more is on both replicas, the others on one each."""
    adapters = [AdapterDemand("hot", 900), *(AdapterDemand(f"a{index}", 1) for index in range(4))]
    placed = place_adapters(adapters, [Room("r", 3), Room("s", 3)], routed=True)
    assert [sum(adapter.name in names for names in placed.values()) for adapter in adapters] == [2, 1, 1, 1, 1]


def test_little_changes_of_demand_move_nothing():
    """From 900 to 700 requests, and one that was idle was asked for once."""
    rooms = [Room("r", 3), Room("s", 3)]
    before = place_adapters([AdapterDemand("hot", 900), *map(AdapterDemand, "abcd")], rooms, routed=True)
    settled = [Room(room.replica, room.places, before[room.replica]) for room in rooms]
    changed = [AdapterDemand("hot", 700), AdapterDemand("a", 0.9), *map(AdapterDemand, "bcd")]
    assert place_adapters(changed, settled, routed=True) == before
