"""With what a replica is warmed: the prompts of the spec, then prefixes of the fleet that it can use. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from kvasir_operator.api.model import WarmupSpec
from kvasir_operator.fleet.prefixes import Budget, KeptPrefix, KeptPrefixes, merge
from kvasir_runtime.contract.admin_api import (
    MAX_LISTED_TOKENS,
    MAX_WARMUP_PROMPTS,
    WarmupEnd,
    WarmupPrompt,
    WarmupState,
)

EVERYTHING: Final = Budget(1 << 30, 1 << 40)


@dataclass(frozen=True, slots=True)
class Replica:
    """What decides which prefixes a replica can use: its tokenizer, and the adapters that it serves."""

    tokenizer: str
    adapters: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Chosen:
    """What to compute, in order, at most so many tokens, and what was left out, in words."""

    prompts: tuple[WarmupPrompt, ...] = ()
    max_tokens: int = MAX_LISTED_TOKENS
    left_out: tuple[str, ...] = ()


def choose_prompts(
    spec: WarmupSpec, texts: Iterable[str], kept: Sequence[KeptPrefixes], replica: Replica, now: datetime
) -> Chosen:
    """The spec's own prompts first, then the hottest prefixes that the replica can use, within the budgets."""
    configured = [WarmupPrompt(text=text) for text in (*spec.prompts, *texts) if text]
    traffic = spec.from_traffic
    if traffic is None:
        return Chosen(tuple(configured[:MAX_WARMUP_PROMPTS]))
    everything = merge(kept, [], EVERYTHING, now).prefixes
    usable = [each for each in everything if is_usable(each, replica) and (traffic.salted or not each.cache_salt)]
    hottest = merge([KeptPrefixes(now, tuple(usable))], [], Budget(traffic.top_prefixes, traffic.max_tokens), now)
    prompts = [*configured, *map(to_prompt, hottest.prefixes)][:MAX_WARMUP_PROMPTS]
    return Chosen(tuple(prompts), traffic.max_tokens, tuple(_left_out(everything, replica)))


def is_usable(prefix: KeptPrefix, replica: Replica) -> bool:
    """Whether its token ids mean the same there, and its adapter is served."""
    return prefix.tokenizer == replica.tokenizer and (not prefix.adapter or prefix.adapter in replica.adapters)


def to_prompt(prefix: KeptPrefix) -> WarmupPrompt:
    """A prefix as an engine is asked for it."""
    return WarmupPrompt(token_ids=list(prefix.token_ids), adapter=prefix.adapter, cache_salt=prefix.cache_salt)


def _left_out(prefixes: Iterable[KeptPrefix], replica: Replica) -> Iterable[str]:
    found = list(prefixes)
    foreign = sum(each.tokenizer != replica.tokenizer for each in found)
    if foreign:
        yield f"{foreign} prefixes are of another tokenizer"
    missing = sum(each.tokenizer == replica.tokenizer and not is_usable(each, replica) for each in found)
    if missing:
        yield f"{missing} prefixes are of adapters that are not served"


def in_words(state: WarmupState, left_out: Iterable[str]) -> str:
    """`1,204 tokens computed, 96 cached in 2.3 s; 3 prefixes are of another tokenizer`."""
    ends = {WarmupEnd.TOKEN_BUDGET: ["the token budget is spent"], WarmupEnd.TIME_BUDGET: ["the time is over"]}
    parts = [f"{state.computed_tokens:,} tokens computed, {state.cached_tokens:,} cached in {state.seconds:.1f} s"]
    parts += ends.get(state.ended, [])
    if state.refused:
        parts.append(f"{len(state.refused)} prompts refused: {next(iter(state.refused.values()))}")
    return "; ".join([*parts, *left_out])
