"""Decisions in words, for status, Events and `explain`."""

from typing import Final

from kvasir_operator.scaling.bounds import Decision, Verdict
from kvasir_operator.scaling.evaluate import Evaluation
from kvasir_operator.scaling.recommender import BACKLOG_S, Inputs, Signal, needs

_DEMANDS: Final = {
    Signal.KV_CACHE: "{kv:,.0f} KV tokens, {kv_capacity:,.0f} x {share:.0%} a replica",
    Signal.PROMPT_LOAD: "{prompt:,.0f} prompt tokens/s, {prompt_capacity:,.0f} x {share:.0%} a replica",
    Signal.QUEUE: "{waiting} requests wait, {queue:g} may at a replica",
    Signal.TTFT: "TTFT p95 is {ttft:.2f} s, {objective:g} s are wanted",
}


def demand_text(inputs: Inputs, signal: Signal | None) -> str:
    """`45,000 KV tokens, 10,000 x 75% a replica`; what was forecast counts where it is more."""
    if signal is None:
        return "there is no load"
    demand, policy = inputs.demand, inputs.policy
    prompt = max(demand.prompt_per_s, demand.prompt_per_s_ahead) + demand.queued_tokens / BACKLOG_S
    return _DEMANDS[signal].format(
        kv=max(demand.kv_tokens, demand.kv_tokens_ahead),
        kv_capacity=inputs.kv_capacity or 0,
        share=policy.utilization or 0,
        prompt=prompt,
        prompt_capacity=inputs.prompt_capacity or 0,
        waiting=demand.waiting,
        queue=policy.queued_requests or 0,
        ttft=demand.ttft_p95_s or 0,
        objective=policy.ttft_s or 0,
    )


def reason_text(evaluation: Evaluation) -> str:
    """Why the decision is what it is, in one sentence."""
    inputs, decision = evaluation.inputs, evaluation.decision
    asked = f"{decision.signal or 'load'} asks for {needs(inputs).up:.1f} ({demand_text(inputs, decision.signal)})"
    match decision.verdict:
        case Verdict.BOUNDS:
            bounds = f"{inputs.policy.min_replicas} to {inputs.policy.max_replicas}"
            return f"Bounds: {inputs.replicas} is not within {bounds}"
        case Verdict.UNKNOWN:
            return f"Unknown: {_unknown(inputs)}"
        case Verdict.DOWN:
            return f"Down: {asked}; for {inputs.policy.down_window_s:g} s no more than {_held(decision, inputs)} were"
        case verdict:
            return f"{verdict}: {asked}"


def _unknown(inputs: Inputs) -> str:
    if inputs.serving == 0:
        return "no replica serves, so there is no load to see"
    return f"none of {inputs.serving} replicas that serve tells its load"


def _held(decision: Decision, inputs: Inputs) -> int:
    return max(decision.most, inputs.highest or 0)


def standing_text(evaluation: Evaluation) -> str:
    """What holds now, in words that change seldom: for the condition."""
    inputs, decision = evaluation.inputs, evaluation.decision
    silent = f"; {inputs.silent} of {inputs.serving} do not tell their load" if inputs.silent else ""
    asked = f"{decision.signal} asks for {needs(inputs).up:.1f}" if decision.signal is not None else "there is no load"
    match decision.verdict:
        case Verdict.STABILIZING if decision.most < inputs.replicas:
            window = f"{inputs.policy.down_window_s:g} s"
            return f"{inputs.replicas} replicas; {asked}; fewer once that held for {window}{silent}"
        case Verdict.STABILIZING:
            window = f"{inputs.policy.up_window_s:g} s"
            return f"{inputs.replicas} replicas; {asked}; more once that held for {window}{silent}"
        case Verdict.RATE_LIMITED:
            return f"{inputs.replicas} replicas; {asked}; the rate of the last minute is used up{silent}"
        case _:
            return f"{decision.to} replicas; {asked}{silent}"
