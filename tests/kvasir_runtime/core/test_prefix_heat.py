"""Which prefixes are reported as hot, in which order, and what bounds them."""

from array import array

from hypothesis import given, settings
from hypothesis import strategies as st

from kvasir_runtime.core.block_hash import extend_block_hashes, hash_root
from kvasir_runtime.core.prefix_heat import HALF_LIFE_S, Origin, PrefixHeat

SIZE = 4
PLAIN = Origin()
SALTED = Origin(cache_salt="tenant")


def visit(heat: PrefixHeat, tokens: list[int], now: float = 0.0, origin: Origin = PLAIN, times: int = 1) -> None:
    hashes: list[bytes] = []
    root = hash_root("model", origin.adapter_digest, origin.cache_salt)
    extend_block_hashes(hashes, root, array("i", tokens), SIZE)
    for _ in range(times):
        heat.visit(array("i", tokens), hashes, origin, now)


def found(heat: PrefixHeat, count: int = 10, max_tokens: int = 1000, now: float = 0.0, **options: bool) -> list[object]:
    return [(list(each.token_ids), round(each.hits, 3)) for each in heat.hottest(count, max_tokens, now, **options)]


SYSTEM = list(range(8))


def test_a_prompt_seen_once_is_not_hot() -> None:
    """Nobody has asked for it again."""
    heat = PrefixHeat(SIZE)
    visit(heat, [*SYSTEM, 50, 51, 52, 53])
    assert found(heat) == []


def test_a_prefix_ends_where_its_prompts_part_ways() -> None:
    """Ten conversations under one system prompt make that prompt hot, and not any of them; whole blocks only."""
    heat = PrefixHeat(SIZE)
    for number in range(10):
        visit(heat, [*SYSTEM, *[100 + number] * 6])
    assert found(heat) == [(SYSTEM, 9.0)]


def test_a_hot_continuation_is_listed_beside_its_beginning() -> None:
    """One conversation that comes back four times is hot itself; hottest first."""
    heat = PrefixHeat(SIZE)
    for number in range(10):
        visit(heat, [*SYSTEM, *[100 + number] * 4])
    conversation = [*SYSTEM, *[103] * 4]
    visit(heat, conversation, times=4)
    assert found(heat) == [(SYSTEM, 13.0), (conversation, 4.0)]
    assert found(heat, count=1) == [(SYSTEM, 13.0)]
    assert found(heat, max_tokens=12) == [(SYSTEM, 13.0)]
    visit(heat, conversation, times=15)
    assert found(heat) == [(conversation, 19.0)], "two of three prompts go on: that is where the prefix ends"


def test_hits_halve_in_ten_minutes() -> None:
    """4 hits, 10 minutes later 2; what was hot yesterday is not told of any more."""
    heat = PrefixHeat(SIZE)
    visit(heat, SYSTEM, times=5)
    assert found(heat) == [(SYSTEM, 4.0)]
    assert found(heat, now=HALF_LIFE_S) == [(SYSTEM, 2.0)]
    other = [9] * 8
    visit(heat, other, now=HALF_LIFE_S, times=4)
    assert found(heat, now=HALF_LIFE_S) == [(other, 3.0), (SYSTEM, 2.0)]
    assert found(heat, now=HALF_LIFE_S * 3000) == []
    visit(heat, other, now=HALF_LIFE_S * 3000)
    assert found(heat, now=HALF_LIFE_S * 3000) == [(other, 1.0)]


def test_salted_prompts_are_left_out_unless_wanted() -> None:
    """A salt keeps tenants apart: what one of them sends is nobody else's to see."""
    heat = PrefixHeat(SIZE)
    visit(heat, SYSTEM, times=3, origin=SALTED)
    assert found(heat) == []
    assert found(heat, salted=True) == [(SYSTEM, 2.0)]
    assert heat.hottest(1, 100, 0.0, salted=True)[0].origin == SALTED


def test_the_same_tokens_with_another_adapter_are_another_prefix() -> None:
    """Their KV differs; forgetting an adapter forgets its prefixes."""
    heat = PrefixHeat(SIZE)
    visit(heat, SYSTEM, times=3)
    visit(heat, SYSTEM, times=2, origin=Origin("pirate", "digest"))
    assert found(heat) == [(SYSTEM, 2.0), (SYSTEM, 1.0)]
    heat.forget("digest")
    assert found(heat) == [(SYSTEM, 2.0)]


prompts = st.builds(
    lambda family, common, tail: [family] * common + tail,
    st.integers(0, 2), st.integers(0, 24), st.lists(st.integers(0, 3), max_size=12),
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(visits=st.lists(st.tuples(prompts, st.floats(0, 2000)), max_size=60), max_nodes=st.integers(4, 40))
def test_bounded_and_never_warmer_than_its_beginning(visits: list[tuple[list[int], float]], max_nodes: int) -> None:
    """Whatever comes: the tree stays within its bound, every node's parent is there and at least as warm."""
    heat, now = PrefixHeat(SIZE, max_nodes), 0.0
    for tokens, pause in visits:
        now += pause
        visit(heat, tokens, now)
        assert len(heat) <= max_nodes
        for node in heat._nodes.values():
            assert node.parent is None or heat._nodes[node.parent.block_hash] is node.parent
            assert node.parent is None or node.parent.heat >= node.heat
    tokens_left = 20
    for prefix in heat.hottest(3, 20, now):
        tokens_left -= len(prefix.token_ids)
        assert len(prefix.block_hashes) * SIZE == len(prefix.token_ids)
        assert prefix.hits >= 0.1
    assert tokens_left >= 0
