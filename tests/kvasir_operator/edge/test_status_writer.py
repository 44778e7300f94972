"""Merge patches of the status."""

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kvasir_operator.status_writer import difference, without_blanks
from tests.kvasir_operator.loop.fake_cluster import merge
from tests.kvasir_operator.loop.harness import KEY, Loop

VALUES = st.recursive(
    st.integers(0, 3) | st.text(max_size=2) | st.lists(st.integers(0, 3), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3)


@given(OBJECTS, OBJECTS)
def test_a_difference_leads_from_one_to_the_other(before: dict[str, Any], after: dict[str, Any]) -> None:
    """And is empty exactly when there is none."""
    patch = difference(before, after)
    assert (patch == {}) == (before == after)
    result = copy.deepcopy(before)
    merge(result, patch)
    assert result == after


def test_blanks_are_left_out() -> None:
    """At every depth, and nothing else is."""
    given_status = {"a": "", "b": 0, "c": [{"d": "", "e": "x"}], "f": {"g": ""}, "h": False}
    assert without_blanks(given_status) == {"b": 0, "c": [{"e": "x"}], "f": {}, "h": False}


async def test_details_are_written_every_ten_seconds_at_most() -> None:
    """The use of the cache moves with every look."""
    loop = Loop()
    await loop.start()
    await loop.settle()
    await loop.turn()
    engine = next(iter(loop.cluster.engines.values()))
    before = len(loop.cluster.writes)
    for use in range(1, 31):
        engine.inflight = use
        loop.clock.move(1)
        loop.observer.forget_answer(KEY, next(iter(loop.cluster.engines)))
        await loop.turn()
    assert 2 <= len(loop.cluster.writes) - before <= 4
