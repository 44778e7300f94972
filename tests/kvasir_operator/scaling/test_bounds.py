"""What is decided from given inputs: the table of `bounds`, and what holds for all inputs."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvasir_operator.scaling.bounds import Verdict, decide
from kvasir_operator.scaling.policy import Policy
from kvasir_operator.scaling.recommender import Demand, Inputs, Signal, ahead, needs

POLICY = Policy(min_replicas=1, max_replicas=10, ttft_s=2.0)


def inputs(replicas: int = 4, *, policy: dict[str, Any] | None = None, **fields: Any) -> Inputs:
    """Four replicas of 10,000 KV tokens and 1,000 prompt tokens a second that answer; demand by keyword."""
    demand = {key: fields.pop(key) for key in list(fields) if key in Demand.model_fields}
    made: dict[str, Any] = {
        "policy": POLICY.model_copy(update=policy or {}),
        "replicas": replicas,
        "serving": replicas,
        "kv_capacity": 10_000,
        "prompt_capacity": 1_000,
        "highest": 0,
        "demand": Demand(**demand),
    }
    return Inputs(**(made | fields))


CASES: dict[str, tuple[Inputs, int, Verdict]] = {
    "45,000 KV tokens of 7,500 a replica need 6": (inputs(kv_tokens=45_000), 6, Verdict.UP),
    "3,750 prompt tokens/s of 750 need 5": (inputs(prompt_per_s=3_750), 5, Verdict.UP),
    "a backlog of 225,000 tokens over a minute too": (inputs(queued_tokens=225_000), 5, Verdict.UP),
    "growth speaks of the future": (inputs(kv_tokens=30_000, kv_tokens_ahead=45_000), 6, Verdict.UP),
    "within the tolerance": (inputs(kv_tokens=32_900), 4, Verdict.STEADY),
    "24 wait where 4 may": (inputs(waiting=24), 6, Verdict.UP),
    "100 wait: at most twice what serves": (inputs(waiting=100, policy={"up_per_minute": 9}), 8, Verdict.UP),
    "100 wait, and what was added is new": (inputs(waiting=100, added_ago_s=10), 4, Verdict.STEADY),
    "TTFT 3 s of 2 s": (inputs(ttft_p95_s=3, kv_tokens=25_000), 6, Verdict.UP),
    "TTFT of replicas that have nothing to do": (inputs(ttft_p95_s=9, highest=None), 4, Verdict.STABILIZING),
    "the rate": (inputs(kv_tokens=75_000, added=2), 6, Verdict.UP),
    "the rate, used up": (inputs(kv_tokens=75_000, added=4), 4, Verdict.RATE_LIMITED),
    "the most": (inputs(9, kv_tokens=99_000), 10, Verdict.UP),
    "growth that did not come keeps nothing": (
        inputs(kv_tokens=12_000, kv_tokens_ahead=20_000, highest=2),
        3,
        Verdict.DOWN,
    ),
    "growth that is forecast does": (inputs(kv_tokens=12_000, kv_tokens_ahead=29_000), 4, Verdict.STEADY),
    "not higher for long enough": (inputs(kv_tokens=45_000, policy={"up_window_s": 60}), 4, Verdict.STABILIZING),
    "higher for long enough, but by less": (
        inputs(kv_tokens=60_000, policy={"up_window_s": 60}, lowest=5),
        5,
        Verdict.UP,
    ),
    "one down a minute": (inputs(), 3, Verdict.DOWN),
    "one went already": (inputs(removed=1), 4, Verdict.RATE_LIMITED),
    "the window is not full": (inputs(highest=None), 4, Verdict.STABILIZING),
    "the window held more": (inputs(highest=4), 4, Verdict.STABILIZING),
    "the rest would not hold it": (inputs(kv_tokens=22_000), 4, Verdict.STEADY),
    "at the moment the rest would not hold it": (inputs(kv_tokens_now=22_000), 4, Verdict.STEADY),
    "nobody answers": (inputs(silent=4), 4, Verdict.UNKNOWN),
    "nobody serves": (inputs(serving=0), 4, Verdict.UNKNOWN),
    "silent ones count as at their target": (inputs(silent=3), 4, Verdict.STEADY),
    "one dead replica does not keep the others": (inputs(8, silent=1), 7, Verdict.DOWN),
    "below the least": (inputs(1, policy={"min_replicas": 3}), 3, Verdict.BOUNDS),
    "above the most": (inputs(40), 10, Verdict.BOUNDS),
}


@pytest.mark.parametrize("case", CASES)
def test_decisions(case: str) -> None:
    """One case a line."""
    given_inputs, to, verdict = CASES[case]
    decision = decide(given_inputs)
    assert (decision.to, decision.verdict) == (to, verdict), decision


def test_the_signal_that_asks_for_most_is_named() -> None:
    """6 by the KV cache, 5 by the prompts."""
    assert needs(inputs(kv_tokens=45_000, prompt_per_s=3_750)).signal is Signal.KV_CACHE
    assert needs(inputs()).signal is None


def test_growth_within_chance_is_not_believed() -> None:
    """8 % in a horizon are not believed, 30 % are, more than doubling is not."""
    assert ahead(100, 108, 90, 10) == 108
    assert ahead(100, 130, 90, 10) == 160
    assert ahead(0, 100, 900, 10) == 200


amounts = st.floats(0, 200_000, allow_nan=False)
counts = st.integers(0, 2_000)


@st.composite
def any_inputs(draw: st.DrawFn) -> Inputs:
    least = draw(st.integers(1, 20))
    serving = draw(st.integers(0, 60))
    return Inputs(
        policy=Policy(
            min_replicas=least,
            max_replicas=draw(st.integers(least, 60)),
            utilization=draw(st.none() | st.floats(0.05, 1)),
            queued_requests=draw(st.none() | st.floats(0.5, 100)),
            ttft_s=draw(st.none() | st.floats(0.1, 10)),
            up_window_s=draw(st.sampled_from([0.0, 30.0])),
            up_per_minute=draw(st.integers(1, 20)),
            down_window_s=draw(st.sampled_from([0.0, 300.0])),
            down_per_minute=draw(st.integers(1, 20)),
            tolerance=draw(st.floats(0, 0.5)),
        ),
        replicas=draw(st.integers(0, 60)),
        serving=serving,
        silent=draw(st.integers(0, serving)),
        demand=Demand(
            kv_tokens_now=draw(amounts),
            kv_tokens=draw(amounts),
            kv_tokens_ahead=draw(amounts),
            prompt_per_s=draw(amounts),
            prompt_per_s_ahead=draw(amounts),
            queued_tokens=draw(counts),
            waiting=draw(counts),
            ttft_p95_s=draw(st.none() | st.floats(0, 100)),
        ),
        kv_capacity=draw(st.none() | st.floats(100, 100_000)),
        prompt_capacity=draw(st.none() | st.floats(100, 100_000)),
        horizon_s=draw(st.floats(0, 600)),
        lowest=draw(st.none() | st.integers(0, 60)),
        highest=draw(st.none() | st.integers(0, 60)),
        added=draw(st.integers(0, 20)),
        removed=draw(st.integers(0, 20)),
        added_ago_s=draw(st.none() | st.floats(0, 1_000)),
    )


@given(any_inputs())
def test_bounds_and_rates_hold(found: Inputs) -> None:
    """Within the bounds whatever happens; from within them, no faster than the rates."""
    policy, to = found.policy, decide(found).to
    assert policy.min_replicas <= to <= policy.max_replicas
    if policy.clamp(found.replicas) == found.replicas:
        assert to - found.replicas <= max(0, policy.up_per_minute - found.added)
        assert found.replicas - to <= max(0, policy.down_per_minute - found.removed)


@given(any_inputs(), st.sampled_from(sorted(Demand.model_fields)), amounts)
def test_monotone_in_demand(found: Inputs, name: str, more: float) -> None:
    """More of anything that is demanded never gives fewer replicas."""
    before = getattr(found.demand, name)
    grown = (before or 0) + (int(more) if isinstance(before, int) else more)
    higher = found.model_copy(update={"demand": found.demand.model_copy(update={name: grown})})
    assert decide(higher).to >= decide(found).to


@given(any_inputs())
def test_missing_data_takes_nothing_away(found: Inputs) -> None:
    """A replica that stops to answer never makes for fewer than if it had said that it is at its target."""
    if found.answering == 0 or found.policy.clamp(found.replicas) != found.replicas:
        return
    policy, demand = found.policy, found.demand
    at_target = demand
    if found.kv_capacity and policy.utilization:
        full = found.kv_capacity * policy.utilization
        at_target = demand.model_copy(
            update={"kv_tokens": demand.kv_tokens + full, "kv_tokens_now": demand.kv_tokens_now + full}
        )
    silent = found.model_copy(update={"silent": found.silent + 1, "serving": found.serving + 1})
    talking = found.model_copy(update={"serving": found.serving + 1, "demand": at_target})
    assert decide(silent).to >= min(decide(talking).to, found.replicas)
    mute = found.model_copy(update={"silent": found.serving})
    assert decide(mute).to == found.replicas


@given(any_inputs())
def test_recorded_inputs_decide_the_same(found: Inputs) -> None:
    """What was written as JSON and read again gives the same decision."""
    again = Inputs.model_validate(found.model_dump(mode="json", by_alias=True))
    assert decide(again) == decide(found)
