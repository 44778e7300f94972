"""Golden prompts: worked differences."""

import math

import pytest

from kvasir_operator.planning.goldens import Scored, compare, mean_difference


def scored(*values: float | None, tokens: str = "abc") -> Scored:
    return Scored(tuple(tokens), values)


@pytest.mark.parametrize(
    ("old", "new", "tolerance", "agree"),
    [
        (scored(None, -1.0, -2.0), scored(None, -1.0, -2.0), 0.0, True),
        (scored(None, -1.0, -2.0), scored(None, -1.1, -1.9), 0.11, True),  # each by 0.1
        (scored(None, -1.0, -2.0), scored(None, -1.3, -2.0), 0.1, False),  # mean of 0.3 and 0
        (scored(None, -1.0, -2.0), scored(None, -1.0, math.nan), 9.0, False),
        (scored(None, -1.0, -2.0), scored(None, -1.0, -math.inf), 9.0, False),
        (scored(None, -1.0, -2.0), scored(None, -1.0, -2.0, tokens="abd"), 9.0, False),
        (scored(None, tokens="a"), scored(None, tokens="a"), 0.0, True),
    ],
)
def test_compare(old: Scored, new: Scored, tolerance: float, agree: bool) -> None:
    """The mean over tokens, within the bound; what is no number is never within it."""
    assert compare(["x"], [old], [new], tolerance).agree is agree


def test_every_prompt_must_agree_and_the_first_that_does_not_is_named() -> None:
    """With the difference and the bound."""
    same, other = scored(None, -1.0, -1.0), scored(None, -2.0, -2.0)
    found = compare(["first", "p" * 99], [same, same], [same, other], 0.5)
    assert not found.agree
    assert "'pppp" in found.message
    assert "differ by 1 nats a token, more than autoRollback.goldenTolerance (0.5)" in found.message
    assert len(found.message) < 200
    assert compare(["a", "b"], [same, same], [same, same], 0.5).message == (
        "2 golden prompts differ by at most 0 nats a token"
    )


def test_the_first_token_has_no_probability() -> None:
    """It is left out of the mean."""
    assert mean_difference(scored(None, -1.0, -2.0), scored(None, -2.0, -2.0)) == 0.5
