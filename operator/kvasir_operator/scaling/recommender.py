"""How many replicas the load asks for: for each signal, demand by what one replica should carry of it.

| signal | demand | one replica should carry |
|---|---|---|
| KVCache | KV tokens that requests hold or wait for | its KV cache x utilization |
| PromptLoad | prompt tokens to compute a second, and the backlog over a minute | its learned speed x utilization |
| Queue | replicas that serve | requests that may wait / requests that wait, at least 1/2 |
| TTFT | replicas that serve, where the objective is missed | objective / TTFT, at least 1/2 |

The signal that asks for most decides. The first two speak of the future: demand at its present growth, where that is
more than chance, for as long as a replica takes to start. A forecast adds replicas and keeps them for as long as it is
made; one that was made earlier and did not come true keeps none. The last two know only that what serves does not
suffice, so they ask for at most twice as much, for no more while replicas that were added have not shown their effect,
and TTFT for at most twice what the others ask: a prompt that is long by itself is no reason for more replicas.

Worked example: 60,000 KV tokens of 20,000 a replica at 75 % ask for 4 replicas; 9,000 prompt tokens/s of 2,000 a
replica at 75 % for 6; so 6.
"""

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from kvasir_operator.api.base import ApiModel
from kvasir_operator.scaling.policy import Policy
from kvasir_operator.scaling.samples import Sample
from kvasir_operator.scaling.windows import LEVEL_S, Memory

BACKLOG_S: Final = 60.0
"""A queue should be worked off in this time."""
MOST_FOR_QUEUE: Final = 2.0
"""Signals that are no measure of demand at most double what serves: what they ordered has to show its effect first."""
LONGEST_HORIZON_S: Final = 600.0
"""Growth is not believed for longer, however long a replica takes to start."""


class Signal(StrEnum):
    """What asks for replicas."""

    KV_CACHE = "KVCache"
    PROMPT_LOAD = "PromptLoad"
    QUEUE = "Queue"
    TTFT = "TTFT"


class Demand(ApiModel):
    """Demand over all replicas that answer: now, in the mean of the last minute, and when a new replica could serve."""

    kv_tokens_now: float = 0
    kv_tokens: float = 0
    kv_tokens_ahead: float = 0
    prompt_per_s_now: float = 0
    prompt_per_s: float = 0
    prompt_per_s_ahead: float = 0
    queued_tokens: int = 0
    waiting: int = 0
    ttft_p95_s: float | None = None


class Inputs(ApiModel):
    """All that a decision is made of; the same inputs give the same decision, on any machine, at any time.

    `replicas` is what is set now; `serving` pods take requests, `silent` ones of them did not answer.
    `kv_capacity` (tokens) and `prompt_capacity` (tokens a second) are of one replica; None is unknown.
    `lowest` and `highest` are what was asked for in the windows, None where they are not full yet.
    `added` and `removed` count replicas of the last minute; `added_ago_s` is since when replicas were last added.
    """

    policy: Policy
    replicas: int
    serving: int
    silent: int = 0
    demand: Demand = Demand()
    kv_capacity: float | None = None
    prompt_capacity: float | None = None
    horizon_s: float = 0
    lowest: int | None = None
    highest: int | None = None
    added: int = 0
    removed: int = 0
    added_ago_s: float | None = None

    @property
    def settling(self) -> bool:
        """Whether replicas were added so lately that the load cannot show yet what they are good for."""
        return self.added_ago_s is not None and self.added_ago_s < self.horizon_s + LEVEL_S

    @property
    def answering(self) -> int:
        return self.serving - self.silent


class Need(ApiModel):
    """Replicas asked for, as fractions: by growing demand (`up`), and that must stay to hold the demand (`down`).

    Growth that was forecast and did not come is no reason to keep replicas, so `down` is without it.
    """

    up: float
    down: float
    signal: Signal | None


def needs(inputs: Inputs) -> Need:
    """What the load asks for. Grows with each demand; a silent replica adds nothing to `up`, and one to `down`."""
    asked = loads(inputs)
    up = max(asked.values())
    signal = next((each for each, replicas in asked.items() if replicas == up), None) if up > 0 else None
    held = max(*loads(inputs, growing=False).values(), *_now(inputs).values())
    return Need(up=up, down=held + inputs.silent, signal=signal)


def loads(inputs: Inputs, *, growing: bool = True) -> dict[Signal, float]:
    """Replicas that each signal asks for; `growing`: where demand will be, else where it is.

    Of silent replicas nothing is known: they are no base to ask for more on, and one to keep what there is.
    """
    demand, policy = inputs.demand, inputs.policy
    kv, prompt = demand.kv_tokens, demand.prompt_per_s
    if growing:
        kv, prompt = max(kv, demand.kv_tokens_ahead), max(prompt, demand.prompt_per_s_ahead)
    base, silent = (inputs.answering, 0) if growing else (inputs.serving, inputs.silent)
    asked = {**_measured(inputs, kv, prompt), Signal.QUEUE: _queue(inputs, base)}
    if policy.ttft_s is not None and demand.ttft_p95_s is not None and demand.ttft_p95_s > policy.ttft_s:
        missed = min(_at_most(inputs, base), base * demand.ttft_p95_s / policy.ttft_s)
        asked[Signal.TTFT] = min(missed, 2 * (max(1.0, *asked.values()) + silent))
    return asked


def _now(inputs: Inputs) -> dict[Signal, float]:
    """Replicas for the KV tokens of this very moment; prompts of a moment are chance."""
    return _measured(inputs, inputs.demand.kv_tokens_now, inputs.demand.prompt_per_s)


def _measured(inputs: Inputs, kv_tokens: float, prompt_per_s: float) -> dict[Signal, float]:
    """Replicas by the signals that are measured in tokens."""
    share, prompt = inputs.policy.utilization, prompt_per_s + inputs.demand.queued_tokens / BACKLOG_S
    return {
        Signal.KV_CACHE: _share_of(kv_tokens, inputs.kv_capacity, share),
        Signal.PROMPT_LOAD: _share_of(prompt, inputs.prompt_capacity, share),
    }


def _share_of(demand: float, capacity: float | None, share: float | None) -> float:
    """Replicas that carry the demand; none where it is not known what one carries, or nobody wants to know."""
    return demand / (capacity * share) if capacity and share else 0.0


def _queue(inputs: Inputs, base: int) -> float:
    limit = inputs.policy.queued_requests
    return 0.0 if limit is None else min(_at_most(inputs, base), inputs.demand.waiting / limit)


def _at_most(inputs: Inputs, base: int) -> float:
    """What signals may ask for that are no measure of demand: no more than there are while some of those are new."""
    return float(inputs.replicas) if inputs.settling else MOST_FOR_QUEUE * base


def look(
    memory: Memory, samples: Mapping[str, Sample | None], policy: Policy, replicas: int, changes: "Changes", now: float
) -> Inputs:
    """Take in the samples of the serving replicas (by pod uid, None: silent) and gather what a decision needs."""
    fleet = memory.observe(samples, now)
    level, earlier = memory.level(now), memory.earlier(now)
    horizon = min(LONGEST_HORIZON_S, memory.cold_start_s or 0.0)
    before, noise = earlier or level, memory.noise(now)
    slack = policy.tolerance
    kv_chance = max(slack * level.kv_tokens, SURE * noise.kv_tokens)
    prompt_chance = max(slack * level.prompt_per_s, SURE * noise.prompt_per_s)
    demand = Demand(
        kv_tokens_now=_short(fleet.now.kv_tokens),
        kv_tokens=_short(level.kv_tokens),
        kv_tokens_ahead=_short(ahead(before.kv_tokens, level.kv_tokens, horizon, kv_chance)),
        prompt_per_s_now=_short(fleet.now.prompt_per_s),
        prompt_per_s=_short(level.prompt_per_s),
        prompt_per_s_ahead=_short(ahead(before.prompt_per_s, level.prompt_per_s, horizon, prompt_chance)),
        queued_tokens=fleet.queued_tokens,
        waiting=fleet.waiting,
        ttft_p95_s=_short(fleet.ttft_p95_s) if fleet.ttft_p95_s is not None else None,
    )
    return Inputs(
        policy=policy,
        replicas=replicas,
        serving=fleet.answering + fleet.silent,
        silent=fleet.silent,
        demand=demand,
        kv_capacity=fleet.kv_capacity,
        prompt_capacity=_short(memory.prompt_capacity) if memory.prompt_capacity is not None else None,
        horizon_s=_short(horizon),
        lowest=memory.lowest(now, policy.up_window_s),
        highest=memory.highest(now, policy.down_window_s),
        added=changes.added,
        removed=changes.removed,
        added_ago_s=changes.added_ago_s,
    )


def _short(number: float) -> float:
    """Thousandths are exact enough, and a record is read by people too."""
    return round(number, 3)


class Changes(ApiModel):
    """Replicas that were added and removed in the last minute, and how long ago some were last added."""

    added: int = 0
    removed: int = 0
    added_ago_s: float | None = None


GAP_S: Final = 90.0
"""Between the middles of the two spans whose means are compared: the last minute, and the two minutes before it."""
SURE: Final = 2.0
"""Growth is believed beyond so many of its standard errors, and beyond the tolerance."""


def ahead(earlier: float, level: float, horizon_s: float, chance: float) -> float:
    """Demand after the horizon if it goes on growing as it did; growth of no more than `chance` is not believed.

    >>> ahead(earlier=100.0, level=130.0, horizon_s=90.0, chance=10.0)
    160.0
    """
    growth = level - earlier
    return level + min(level, growth * (horizon_s / GAP_S)) if growth > chance else level


def whole(replicas: float) -> int:
    """Round up; what is a hair above a whole number by arithmetic alone is that number."""
    return math.ceil(replicas - 1e-9)
