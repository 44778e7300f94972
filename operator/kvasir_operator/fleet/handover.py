"""What a replica that goes hands over: its hottest prefixes that no survivor holds, each to one survivor. Pure."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence

from kvasir_operator.fleet.prefixes import HASHED_TOKENS, Budget, KeptPrefix, blocks, bounded
from kvasir_operator.fleet.warmup import to_prompt
from kvasir_runtime.contract.admin_api import PrefixList, WarmupPrompt

ChooseSurvivor = Callable[[KeptPrefix, Sequence[str]], str]
"""Which of the survivors, by name, requests with that prefix will go to."""


def choose_survivor(prefix: KeptPrefix, survivors: Sequence[str]) -> str:
    """By rendezvous hashing of its first block, so that all that begin alike go to the same survivor.

    A survivor that goes moves nothing but what it had (Thaler and Ravishankar, 1998).
    """
    first = blocks(prefix)[0]
    return max(survivors, key=lambda name: hashlib.blake2b(first + name.encode(), digest_size=8).digest())


def held_by(lists: Iterable[tuple[str, PrefixList]]) -> frozenset[bytes]:
    """Blocks that survivors still have, of what they were asked for most; with each, its tokenizer's digest."""
    found: set[bytes] = set()
    for tokenizer, listed in lists:
        for each in listed.prefixes:
            cached = tuple(each.token_ids[: each.cached_tokens // HASHED_TOKENS * HASHED_TOKENS])
            if cached:
                found.update(blocks(KeptPrefix(cached, each.hits, tokenizer, each.adapter, each.cache_salt)))
    return frozenset(found)


def hand_over(
    prefixes: Sequence[KeptPrefix],
    held: frozenset[bytes],
    survivors: Sequence[str],
    budget: Budget,
    choose: ChooseSurvivor = choose_survivor,
) -> Mapping[str, list[WarmupPrompt]]:
    """What each survivor is to compute, hottest first. `prefixes` are the victim's, hottest first."""
    if not survivors:
        return {}
    found: dict[str, list[WarmupPrompt]] = {}
    for each in bounded([each for each in prefixes if not held.issuperset(blocks(each))], budget):
        found.setdefault(choose(each, survivors), []).append(to_prompt(each))
    return found
