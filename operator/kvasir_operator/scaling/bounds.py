"""What may be done about what the load asks for: tolerance, windows, rates, bounds.

| replicas | asked for | windows | rate | then | verdict |
|---|---|---|---|---|---|
| outside the bounds | any | any | any | into the bounds, at once | Bounds |
| within | none serves, or none answers | any | any | leave | Unknown |
| within | more, beyond the tolerance | not higher for all of scaleUp's | any | leave | Stabilizing |
| within | more, beyond the tolerance | higher for all of it | used up | leave | RateLimited |
| within | more, beyond the tolerance | higher for all of it | left | add, within rate and bounds | Up |
| within | fewer, beyond the tolerance | not lower for all of scaleDown's | any | leave | Stabilizing |
| within | fewer, beyond the tolerance | lower for all of it | used up | leave | RateLimited |
| within | fewer, beyond the tolerance | lower for all of it | left | take away, within rate and bounds | Down |
| within | otherwise | any | any | leave | Steady |

Bound on changes of direction: replicas go from being added to being taken away only after all of `scaleDown`'s window W
asked for fewer. In a time T there are at most T / W + 1 such turns, and one more of the other sort.
"""

from enum import StrEnum
from typing import Final

from kvasir_operator.api.base import ApiModel
from kvasir_operator.scaling.recommender import Inputs, Need, Signal, needs, whole

RATE_S: Final = 60.0
"""Rates are given for a minute."""


class Verdict(StrEnum):
    """What is done, in one word."""

    BOUNDS = "Bounds"
    UNKNOWN = "Unknown"
    UP = "Up"
    DOWN = "Down"
    STABILIZING = "Stabilizing"
    RATE_LIMITED = "RateLimited"
    STEADY = "Steady"


class Decision(ApiModel):
    """Replicas from now on, why, and what was asked for: `least` by growing demand, `most` that must stay."""

    to: int
    verdict: Verdict
    least: int
    most: int
    signal: Signal | None = None


def decide(inputs: Inputs) -> Decision:
    """Follow the table above."""
    policy, current = inputs.policy, inputs.replicas
    if policy.clamp(current) != current:
        return Decision(to=policy.clamp(current), verdict=Verdict.BOUNDS, least=current, most=current)
    if inputs.answering == 0:
        return Decision(to=current, verdict=Verdict.UNKNOWN, least=current, most=current)
    need = needs(inputs)
    least, most = least_asked(need, inputs), most_asked(need, inputs)
    if least > current:
        to, verdict = _up(inputs, least)
    elif (kept := max(most, whole(need.up) + inputs.silent)) < current:
        to, verdict = _down(inputs, kept)
    else:
        to, verdict = current, Verdict.STEADY
    return Decision(to=to, verdict=verdict, least=least, most=most, signal=need.signal)


def least_asked(need: Need, inputs: Inputs) -> int:
    """Replicas that demand asks for if it asks for more than there are, beyond the tolerance; else those there are."""
    beyond = need.up > inputs.replicas * (1 + inputs.policy.tolerance)
    return inputs.policy.clamp(whole(need.up)) if beyond else inputs.replicas


def most_asked(need: Need, inputs: Inputs) -> int:
    """Replicas that hold the demand with the tolerance to spare, so that they need not be added again at once.

    One that answers stays in any case: what only silent replicas are left to do, nobody could see.
    """
    held = whole(need.down / (1 - inputs.policy.tolerance))
    return inputs.policy.clamp(max(held, inputs.silent + 1))


def _up(inputs: Inputs, least: int) -> tuple[int, Verdict]:
    policy, current = inputs.policy, inputs.replicas
    if policy.up_window_s > 0:
        if inputs.lowest is None or inputs.lowest <= current:
            return current, Verdict.STABILIZING
        least = min(least, inputs.lowest)
    room = policy.up_per_minute - inputs.added
    return (min(least, current + room), Verdict.UP) if room > 0 else (current, Verdict.RATE_LIMITED)


def _down(inputs: Inputs, most: int) -> tuple[int, Verdict]:
    policy, current = inputs.policy, inputs.replicas
    if policy.down_window_s > 0:
        if inputs.highest is None or inputs.highest >= current:
            return current, Verdict.STABILIZING
        most = max(most, inputs.highest)
    room = policy.down_per_minute - inputs.removed
    return (max(most, current - room), Verdict.DOWN) if room > 0 else (current, Verdict.RATE_LIMITED)
