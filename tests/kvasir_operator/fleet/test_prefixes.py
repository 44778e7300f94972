"""Prefixes of a fleet: merged, bounded, kept, and handed over."""

import zlib
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvasir_operator.api.model import WarmupSpec
from kvasir_operator.fleet.handover import choose_survivor, hand_over, held_by
from kvasir_operator.fleet.prefix_codec import INFLATED_LIMIT_BYTES, decode, encode
from kvasir_operator.fleet.prefixes import Budget, KeptPrefix, KeptPrefixes, blocks, merge, read_list
from kvasir_operator.fleet.warmup import Chosen, Replica, choose_prompts, in_words
from kvasir_runtime.contract.admin_api import Prefix, PrefixList, WarmupEnd, WarmupState
from tests.kvasir_operator.planning.builders import NOW

PLENTY = Budget(100, 100_000)


def ids(seed: int, length: int = 32) -> tuple[int, ...]:
    """Token ids that begin like those of the same seed and any other length."""
    return tuple((seed * 7919 + position) % 3000 for position in range(length))


def prefix(seed: int, hits: float = 1.0, length: int = 32, tokenizer: str = "t", **fields: str) -> KeptPrefix:
    return KeptPrefix(ids(seed, length), hits, tokenizer, **fields)


def kept(*prefixes: KeptPrefix, age_s: float = 0) -> KeptPrefixes:
    return KeptPrefixes(NOW - timedelta(seconds=age_s), prefixes)


def heats(found: KeptPrefixes) -> dict[tuple[int, ...], float]:
    return {each.token_ids: round(each.hits, 3) for each in found.prefixes}


def test_heat_of_living_replicas_adds_up() -> None:
    """The hottest first."""
    found = merge([], [[prefix(1, 3), prefix(2, 5)], [prefix(1, 4)]], PLENTY, NOW)
    assert list(heats(found).items()) == [(ids(1), 7), (ids(2), 5)]


def test_collecting_twice_counts_once() -> None:
    """What was kept is not added to what the same replicas still tell; what only was kept cools down."""
    before = merge([], [[prefix(1, 8), prefix(2, 8)]], PLENTY, NOW - timedelta(minutes=10))
    assert heats(merge([before], [[prefix(1, 8)]], PLENTY, NOW)) == {ids(1): 8, ids(2): 4}


def test_what_is_cold_is_forgotten() -> None:
    """One hit is gone within an hour."""
    assert merge([kept(prefix(1, 1), age_s=3600)], [], PLENTY, NOW).prefixes == ()


def test_prefixes_of_prefixes_cost_nothing() -> None:
    """One that lies in a chosen one is left out; one that goes on where another ends costs its further blocks."""
    whole, part = prefix(1, 5, length=64), prefix(1, 3, length=32)
    assert list(heats(merge([], [[whole, part]], PLENTY, NOW))) == [ids(1, 64)]
    hotter = replace(part, hits=9)
    assert list(heats(merge([], [[whole, hotter]], Budget(9, 64), NOW))) == [ids(1, 32), ids(1, 64)]
    assert list(heats(merge([], [[whole, hotter]], Budget(9, 63), NOW))) == [ids(1, 32)]


def test_the_same_tokens_of_another_origin_are_others() -> None:
    """Another adapter, salt or tokenizer."""
    found = [prefix(1), prefix(1, adapter="a"), prefix(1, cache_salt="s"), prefix(1, tokenizer="u")]
    assert len(merge([], [found], PLENTY, NOW).prefixes) == 4


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 6), st.floats(0.1, 50), st.integers(1, 80)), max_size=8), max_size=4),
    st.integers(1, 6),
    st.integers(1, 200),
)
def test_budgets_hold(replicas: list[list[tuple[int, float, int]]], count: int, tokens: int) -> None:
    """Whatever replicas tell: so many prefixes, so many blocks that differ, none covered by one before."""
    told = [[prefix(seed, hits, length) for seed, hits, length in replica] for replica in replicas]
    found = merge([], told, Budget(count, tokens), NOW).prefixes
    assert len(found) <= count
    covered: set[bytes] = set()
    for each in found:
        assert not covered.issuperset(blocks(each))
        covered.update(blocks(each))
    assert all(len(each.token_ids) <= tokens for each in found)
    again = merge([KeptPrefixes(NOW, found)], [], Budget(count, tokens), NOW).prefixes
    assert set(again) == set(found)


def test_a_replica_is_not_believed_that_tells_of_salts_unasked_or_has_no_tokenizer() -> None:
    """Other tenants' prompts stay where they are."""
    listed = PrefixList(
        prefixes=[
            Prefix(token_ids=[1], hits=1, bytes=1, cached_tokens=0, cache_salt="secret"),
            Prefix(token_ids=[2], hits=1, bytes=1, cached_tokens=0),
        ]
    )
    assert [each.token_ids for each in read_list(listed, "t", salted=False)] == [(2,)]
    assert [each.cache_salt for each in read_list(listed, "t", salted=True)] == ["secret", ""]
    assert list(read_list(listed, "", salted=True)) == []


# --- Kept in a Secret


def test_what_is_kept_comes_back() -> None:
    """To the thousandth of a hit."""
    before = kept(prefix(1, 2.5), prefix(2, 1, adapter="a", cache_salt="s"))
    assert decode(encode(before), NOW) == before


def test_the_coldest_are_left_out_where_all_take_too_much() -> None:
    """No more bytes than the bound."""
    many = kept(*(prefix(seed, 1000 - seed, length=160) for seed in range(200)))
    data = encode(many, limit=4000)
    assert len(data) <= 4000
    found = decode(data, NOW)
    assert found is not None
    assert 3 < len(found.prefixes) < 200
    assert found.prefixes == many.prefixes[: len(found.prefixes)]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"by hand",
        encode(kept(prefix(1)))[:-3],
        zlib.compress(b"{}"),
        zlib.compress(b'{"at":"2026-03-01T12:00:00Z","prefixes":[{"ids":[-1],"hits":1,"tokenizer":"t"}]}'),
        zlib.compress(b'{"at":"2026-03-01T12:00:00Z","prefixes":[{"ids":[1],"hits":NaN,"tokenizer":"t"}]}'),
        zlib.compress(b'{"at":"never","prefixes":[]}'),
        zlib.compress(b" " * (INFLATED_LIMIT_BYTES + 1)),
    ],
    ids=["empty", "text", "cut", "no document", "negative id", "no number", "no time", "a bomb"],
)
def test_what_was_edited_by_hand_counts_as_absent(data: bytes) -> None:
    """It is written anew with the next collection."""
    assert decode(data, NOW) is None


def test_times_to_come_count_as_now() -> None:
    """A clock that went wrong does not keep prefixes hot for ever."""
    future = encode(kept(prefix(1), age_s=-1e6))
    found = decode(future, NOW)
    assert found is not None
    assert found.at == NOW


# --- With what a replica is warmed


def warm(replica: Replica, *stored: KeptPrefixes, texts: tuple[str, ...] = (), **traffic: object) -> Chosen:
    spec = WarmupSpec.model_validate({"prompts": ["first"], "fromTraffic": traffic})
    return choose_prompts(spec, texts, stored, replica, NOW)


def test_own_prompts_come_first_then_the_hottest() -> None:
    """Of all revisions that are kept."""
    chosen = warm(Replica("t"), kept(prefix(1, 1)), kept(prefix(2, 9)), texts=("second",), maxTokens=1000)
    assert [each.text for each in chosen.prompts[:2]] == ["first", "second"]
    assert [tuple(each.token_ids or ()) for each in chosen.prompts[2:]] == [ids(2), ids(1)]
    assert (chosen.max_tokens, chosen.left_out) == (1000, ())


def test_what_a_replica_cannot_use_is_left_out_with_the_reason() -> None:
    """Another tokenizer, an adapter that it does not serve; salts unless they are allowed."""
    stored = kept(prefix(1, tokenizer="old"), prefix(2, adapter="a"), prefix(3, adapter="b"), prefix(4, cache_salt="s"))
    chosen = warm(Replica("t", frozenset({"b"})), stored)
    assert [each.adapter for each in chosen.prompts] == ["", "b"]
    assert chosen.left_out == ("1 prefixes are of another tokenizer", "1 prefixes are of adapters that are not served")
    assert len(warm(Replica("t", frozenset({"b"})), stored, salted=True).prompts) == 3


def test_how_it_went_in_words() -> None:
    state = WarmupState(
        ended=WarmupEnd.TOKEN_BUDGET,
        prompts=2,
        computed_tokens=1204,
        cached_tokens=96,
        pinned_tokens=0,
        seconds=2.345,
        refused={3: "too long"},
    )
    assert in_words(state, ["x"]) == (
        "1,204 tokens computed, 96 cached in 2.3 s; the token budget is spent; 1 prompts refused: too long; x"
    )


# --- Handed over


def test_what_survivors_hold_is_not_handed_over() -> None:
    """The rest goes to one survivor each, hottest first, within the budget."""
    held = Prefix(token_ids=list(ids(1)), hits=1, bytes=1, cached_tokens=32)
    lost = Prefix(token_ids=list(ids(2)), hits=1, bytes=1, cached_tokens=0)
    lists = [("t", PrefixList(prefixes=[held, lost]))]
    own = [prefix(seed, 9 - seed) for seed in range(1, 6)]
    shares = hand_over(own, held_by(lists), ["p", "q"], Budget(3, 1000))
    handed = sorted(tuple(each.token_ids or ()) for prompts in shares.values() for each in prompts)
    assert handed == sorted(map(ids, (2, 3, 4)))
    assert hand_over(own, frozenset(), [], PLENTY) == {}


def test_all_that_begin_alike_go_to_the_same_survivor() -> None:
    """And a survivor that goes moves nothing but what it had."""
    names = ["p", "q", "r", "s"]
    for seed in range(40):
        chosen = choose_survivor(prefix(seed), names)
        assert choose_survivor(prefix(seed, length=320), names) == chosen
        assert choose_survivor(prefix(seed), [name for name in names if name in (chosen, "p", "q")]) == chosen
    assert len({choose_survivor(prefix(seed), names) for seed in range(40)}) == 4
