"""Which replica a request goes to."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvasir_router.holders import EVERYBODY, MAX_HOLDERS, Holders
from kvasir_router.policies import OVERLOAD, LeastLoad, PrefixAffinity, RoundRobin, spread
from kvasir_router.prompts import Ask
from kvasir_router.ring import Ring

NAMES = [f"pod-{number}" for number in range(8)]
IDLE = dict.fromkeys(NAMES, 0.0)


def ask(*blocks: int, cost: int = 100, session: bool = False) -> Ask:
    return Ask(blocks=tuple(hash((block, "spread")) & (2**64 - 1) for block in blocks), cost=cost, session=session)


def test_the_ring_divides_keys_and_moves_few():
    """Nobody has twice the mean; when one of eight goes, only its keys move."""
    draw = random.Random(1)
    keys = [draw.getrandbits(64) for _ in range(4000)]
    ring, smaller = Ring(NAMES), Ring(NAMES[:-1])
    homes = {key: next(ring.walk(key)) for key in keys}
    counts = [list(homes.values()).count(name) for name in NAMES]
    assert 250 < min(counts) <= max(counts) < 1000
    assert all(next(smaller.walk(key)) == home for key, home in homes.items() if home != NAMES[-1])


def test_a_walk_meets_everybody_once():
    assert sorted(Ring(NAMES).walk(12345)) == NAMES
    assert list(Ring([]).walk(1)) == []


def test_two_routers_agree_without_talking():
    """On prompts that neither has seen, whatever each did before."""
    one, other = PrefixAffinity(), PrefixAffinity()
    for block in range(500):
        chosen = one.choose(ask(block), IDLE)
        one.sent(ask(block), chosen.name)
    for block in range(1000, 1500):
        assert one.choose(ask(block), IDLE) == other.choose(ask(block), dict(reversed(IDLE.items())))


def test_a_prompt_goes_where_its_longest_prefix_is():
    policy = PrefixAffinity()
    policy.sent(ask(1, 2), "pod-3")
    policy.sent(ask(1, 5), "pod-6")
    assert policy.choose(ask(1, 2, 3), IDLE) == ("pod-3", "prefix")
    assert policy.choose(ask(1, 5, 6), IDLE) == ("pod-6", "prefix")
    busy = IDLE | {"pod-3": 50.0}
    assert policy.choose(ask(1, 9), busy).name == "pod-6"  # both hold it: the less loaded one


def test_what_everybody_holds_says_nothing():
    """A system prompt that four were sent: the part behind it decides, and without one the load."""
    policy = PrefixAffinity()
    for name in NAMES[: MAX_HOLDERS + 1]:
        policy.sent(ask(1), name)
    assert policy.holders.of(ask(1).blocks[0]) == EVERYBODY
    assert policy.choose(ask(1, 77), IDLE) == (next(Ring(NAMES).walk(ask(77).blocks[0])), "hash")
    assert policy.choose(ask(1), IDLE | dict.fromkeys(NAMES[:7], 9.0)) == ("pod-7", "least-load")


def test_a_holder_that_is_too_busy_is_left_alone():
    """It may be busier than its share by what it saves: with 16 tokens of a prefix that is next to nothing."""
    policy = PrefixAffinity()
    policy.sent(ask(1), "pod-3")
    loads = dict.fromkeys(NAMES, 1000.0) | {"pod-3": 2000.0}
    chosen = policy.choose(ask(1), loads)
    assert chosen.name != "pod-3"
    assert chosen.reason in {"hash", "spill"}


@given(
    st.dictionaries(st.sampled_from(NAMES), st.floats(min_value=0, max_value=1e6), min_size=1),
    st.integers(min_value=0, max_value=2**64 - 1),
    st.integers(min_value=1, max_value=100_000),
)
def test_nobody_gets_more_than_its_share(loads, key, cost):
    """A prompt that nobody holds goes to somebody within the share, and there always is one."""
    chosen = PrefixAffinity().choose(Ask(blocks=(key,), cost=cost), loads)
    assert loads[chosen.name] <= OVERLOAD * (sum(loads.values()) + cost) / len(loads)


def test_a_session_stays_where_it_is():
    """Also where another one holds more of the prompt, up to twice its share of the load."""
    policy = PrefixAffinity()
    policy.sent(ask(9, 1, session=True), "pod-2")
    assert policy.choose(ask(9, 5, session=True), IDLE) == ("pod-2", "session")
    assert policy.choose(ask(9, 5, session=True), IDLE | {"pod-2": 5000.0}).name != "pod-2"
    gone = {name: load for name, load in IDLE.items() if name != "pod-2"}
    assert policy.choose(ask(9, 5, session=True), gone).name in gone


def test_least_load_and_round_robin():
    least, turn = LeastLoad(), RoundRobin()
    assert least.choose(ask(), {"a": 5.0, "b": 1.0, "c": 3.0}) == ("b", "least-load")
    order = []
    for _ in range(5):
        order.append(turn.choose(ask(), dict.fromkeys("abc", 0.0)).name)
        turn.sent(ask(), order[-1])
    assert order == list("abcab")
    equals = []
    for _ in range(3):
        equals.append(least.choose(ask(), dict.fromkeys("abc", 0.0)).name)
        least.sent(ask(), equals[-1])
    assert equals == list("abc")


def test_memory_is_bounded_whatever_comes():
    """Three hundred thousand distinct prompts leave no more than the bound behind, and the latest are known."""
    policy = PrefixAffinity(limit=10_000)
    for number in range(300_000):
        policy.sent(Ask(blocks=(number * 7919,)), NAMES[number % 8])
    assert len(policy.holders) == 10_000
    assert policy.choose(Ask(blocks=(299_999 * 7919,)), IDLE).reason == "prefix"
    assert policy.choose(Ask(blocks=(0,)), IDLE).reason == "hash"


def test_what_is_asked_for_stays():
    """The least recently sent prefix goes first."""
    holders = Holders(3)
    for block in (1, 2, 3):
        holders.note((block,), "a")
    holders.note((1,), "a")
    holders.note((4,), "a")
    assert [holders.of(block) for block in (1, 2, 3, 4)] == [("a",), None, ("a",), ("a",)]


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ({"new": 10.0}, {"new": 0.1, "old": 0.9}),
        ({"new": 0.0}, {"new": 0.0, "old": 1.0}),
        ({"new": 100.0}, {"new": 1.0, "old": 0.0}),
        ({"new": 25.0, "old": 75.0}, {"new": 0.25, "old": 0.75}),
        ({"other": 50.0}, {"new": 0.5, "old": 0.5}),
    ],
)
def test_weights_divide_the_requests(weights, shares):
    """Revisions that have no replica count for nothing; those without a weight share what is left."""
    draws = [(number + 0.5) / 1000 for number in range(1000)]
    got = [spread(["new", "old"], weights, draw) for draw in draws]
    assert {name: got.count(name) / 1000 for name in shares} == pytest.approx(shares, abs=0.002)


def test_weights_that_leave_nothing():
    assert spread(["new"], {"new": 0.0, "old": 100.0}, 0.3) is None
