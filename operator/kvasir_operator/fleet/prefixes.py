"""The prefixes that a fleet is asked for most: merged from what its replicas say, bounded, kept. Pure.

Each replica tells the heat of a prefix since its process began, halved every 10 minutes. The heat in the fleet is the
sum over the replicas that are there; what was kept before counts, cooled down to now, where it is hotter: so prefixes
of replicas that have gone are remembered, and those of replicas that stay are not counted twice.

Two prefixes are the same when their last blocks have the same chained hash. One whose blocks all lie in a chosen one is
left out, and one that begins like a chosen one costs only its further blocks.
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from kvasir_runtime.contract.admin_api import PrefixList

HALF_LIFE: Final = timedelta(minutes=10)
"""As the engines' own."""
MIN_HITS: Final = 0.1
"""What is colder is forgotten, as the engines do."""
HASHED_TOKENS: Final = 16
"""Tokens of a block, for comparing prefixes; the engines' blocks may be others."""
_DIGEST_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class KeptPrefix:
    """The beginning of prompts, as token ids of the tokenizer with that digest; `hits` as of when it was kept."""

    token_ids: tuple[int, ...]
    hits: float
    tokenizer: str
    adapter: str = ""
    cache_salt: str = ""

    @property
    def origin(self) -> tuple[str, str, str]:
        """What, beside its tokens, decides who can use it."""
        return self.tokenizer, self.adapter, self.cache_salt


@dataclass(frozen=True, slots=True)
class KeptPrefixes:
    """What is kept of a revision, hottest first."""

    at: datetime
    prefixes: tuple[KeptPrefix, ...] = ()


@dataclass(frozen=True, slots=True)
class Budget:
    """Most prefixes, and most tokens in all."""

    prefixes: int
    tokens: int


def read_list(listed: PrefixList, tokenizer: str, *, salted: bool) -> Iterator[KeptPrefix]:
    """What a replica said. A process that does not know its tokenizer, or tells of salts unasked, is not believed."""
    for each in listed.prefixes:
        if tokenizer and each.token_ids and (salted or not each.cache_salt):
            yield KeptPrefix(tuple(each.token_ids), each.hits, tokenizer, each.adapter, each.cache_salt)


def merge(
    kept: Iterable[KeptPrefixes], told: Iterable[Iterable[KeptPrefix]], budget: Budget, now: datetime
) -> KeptPrefixes:
    """What to keep, from what was kept and what each replica tells now."""
    heat: dict[bytes, KeptPrefix] = {}
    for replica in told:
        for each in replica:
            _add(heat, each, add=True)
    for before in kept:
        cooling = 0.5 ** max(0.0, (now - before.at) / HALF_LIFE)
        for each in before.prefixes:
            _add(heat, replace(each, hits=each.hits * cooling), add=False)
    hot = [each for each in heat.values() if each.hits >= MIN_HITS]
    hot.sort(key=lambda each: (-each.hits, -len(each.token_ids), each.origin, each.token_ids))
    return KeptPrefixes(now, tuple(bounded(hot, budget)))


def _add(heat: dict[bytes, KeptPrefix], prefix: KeptPrefix, *, add: bool) -> None:
    key = blocks(prefix)[-1]
    known = heat.get(key)
    if known is not None:
        hits = known.hits + prefix.hits if add else max(known.hits, prefix.hits)
        prefix = replace(known, hits=hits)
    heat[key] = prefix


def bounded(hottest_first: Sequence[KeptPrefix], budget: Budget) -> Iterator[KeptPrefix]:
    """The first of them that the budget allows and that are not covered by one before. What is too long is passed."""
    covered: set[bytes] = set()
    tokens = chosen = 0
    for each in hottest_first:
        own = blocks(each)
        further = [block for block in own if block not in covered]
        cost = min(len(each.token_ids), len(further) * HASHED_TOKENS)
        if chosen == budget.prefixes:
            return
        if not further or tokens + cost > budget.tokens:
            continue
        covered.update(further)
        tokens, chosen = tokens + cost, chosen + 1
        yield each


def blocks(prefix: KeptPrefix) -> list[bytes]:
    """Chained hashes of its blocks, a part of one at the end included; never empty."""
    digest = hashlib.blake2b("\n".join(map(repr, prefix.origin)).encode(), digest_size=_DIGEST_BYTES).digest()
    found: list[bytes] = []
    for start in range(0, len(prefix.token_ids), HASHED_TOKENS):
        content = array("q", prefix.token_ids[start : start + HASHED_TOKENS]).tobytes()
        digest = hashlib.blake2b(digest + content, digest_size=_DIGEST_BYTES).digest()
        found.append(digest)
    return found or [digest]
