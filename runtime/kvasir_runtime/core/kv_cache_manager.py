"""Gives sequences their KV blocks: found in the prefix cache, newly allocated, given back. Torch-free.

Where every layer has a sliding window, a token sees the last `window` tokens alone, itself included. Blocks that lie
wholly before that are given back while the sequence runs, and a cached prefix is of use where the blocks of its last
`window` - 1 tokens are there. In a block table the null block stands for those that are not needed.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

from kvasir_runtime.core.block_hash import extend_block_hashes
from kvasir_runtime.core.block_pool import NULL_BLOCK, BlockPool
from kvasir_runtime.core.prefix_heat import PrefixHeat
from kvasir_runtime.request import Request

VALUE_HALF_LIFE_S = 600.0
"""The cache's value forgets half of the tokens it saved in this time."""

PINNED_SHARE = 0.5
"""Of the blocks at most: the rest caches what users send now."""


class KVCacheManager:
    """Block tables of all sequences over one pool. `num_blocks` includes the null block."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        eviction_policy: Literal["lru", "lfu"] = "lru",
        heat: PrefixHeat | None = None,
        *,
        window: int | None = None,
        step_tokens: int = 0,
    ) -> None:
        """`heat` is told of every user's prompt. `window` is the widest layer's, None where a layer has none.

        `step_tokens`: most tokens of one step; a longer prompt needs blocks for the window and a step alone.
        """
        self.window = window
        self._step_tokens = step_tokens
        self.block_size = block_size
        self.heat = heat
        self.pool = BlockPool(num_blocks, eviction_policy)
        self.query_tokens = 0
        self.hit_tokens = 0
        self._value = 0.0
        self._value_time = 0.0

    def find_cached(self, request: Request) -> list[int]:
        """The longest run of cached blocks at the start of `request`. Takes no references: valid until blocks move.

        With a window the first entries are null blocks, in place of those that no token to come will see. The last
        token is never taken from the cache: its logits are needed to go on.
        """
        if request.hash_root is None or request.sampling.prompt_logprobs is not None:
            return []
        extend_block_hashes(request.block_hashes, request.hash_root, request.token_ids, self.block_size)
        block_hashes = request.block_hashes[: (request.num_tokens - 1) // self.block_size]
        return self._find(block_hashes)

    def can_admit(self, request: Request, cached: list[int], spare: int) -> bool:
        """Whether the whole of `request` fits beside what runs, with `spare` blocks left for that to grow."""
        revived = sum(self.pool.ref_counts[block] == 0 for block in cached)
        needed = self._blocks_for(request.num_tokens) - len(cached)
        if self.window is not None and self._step_tokens:
            needed = min(needed, self._blocks_for(self.window + self._step_tokens) + 1)
        return needed + revived + spare <= self.pool.num_free

    def admit(self, request: Request, cached: list[int], now: float) -> None:
        """Start `request` with the cached blocks as the beginning of its table."""
        assert not request.block_ids, request.request_id
        request.num_released_blocks = self._num_unseen(len(cached) * self.block_size)
        self.pool.acquire(cached[request.num_released_blocks :])
        request.block_ids.extend(cached)
        request.num_registered_blocks = len(cached)
        request.num_computed_tokens = len(cached) * self.block_size
        if request.num_cached_tokens is not None:  # it was preempted: what it asked for then counts
            return
        request.num_cached_tokens = request.num_computed_tokens
        if request.background:
            return
        self.query_tokens += request.num_prompt_tokens
        self.hit_tokens += request.num_computed_tokens
        self._value = self.value(now) + request.num_computed_tokens
        self._value_time = now
        if self.heat is not None and request.index == 0:
            full = request.num_prompt_tokens // self.block_size
            self.heat.visit(request.token_ids, request.block_hashes[:full], request.origin, now)

    def allocate(self, request: Request, num_new_tokens: int) -> bool:
        """Make room for the next tokens to compute. False, and nothing changed, if there is none."""
        missing = self._blocks_for(request.num_computed_tokens + num_new_tokens) - len(request.block_ids)
        if missing > self.pool.num_free:
            return False
        if missing > 0:
            request.block_ids.extend(self.pool.allocate(missing))
        return True

    def register_computed(self, request: Request) -> None:
        """Make findable those blocks of `request` that have become full."""
        full = request.num_computed_tokens // self.block_size
        if request.hash_root is None or full <= request.num_registered_blocks:
            return
        extend_block_hashes(request.block_hashes, request.hash_root, request.token_ids, self.block_size)
        for position in range(request.num_registered_blocks, full):
            self.pool.register(request.block_ids[position], request.block_hashes[position])
        request.num_registered_blocks = full

    def release_unseen(self, request: Request) -> None:
        """Give back those blocks of `request` that no layer will look at again; they stay findable."""
        first, end = request.num_released_blocks, self._num_unseen(request.num_computed_tokens)
        if end > first:
            self.pool.release(request.block_ids[first:end])
            request.block_ids[first:end] = [NULL_BLOCK] * (end - first)
            request.num_released_blocks = end

    def pin(self, request: Request, until: float) -> None:
        """Let the computed blocks of a prompt outlive others in the cache until then, its first blocks first."""
        found = self._find(request.block_hashes[: request.num_prompt_tokens // self.block_size])
        blocks = [block for block in found if block != NULL_BLOCK]
        self.pool.pin(blocks, until, int(self.pool.num_usable * PINNED_SHARE))

    def count_cached(self, block_hashes: Sequence[bytes]) -> int:
        """How many blocks of a chain, from its beginning on, a request would find in the cache."""
        return len(self._find(block_hashes))

    def free(self, request: Request) -> None:
        """Give back all blocks of `request`; harmless when it has none."""
        self.pool.release(request.block_ids[request.num_released_blocks :])
        request.block_ids.clear()
        request.num_registered_blocks = request.num_released_blocks = 0
        request.num_computed_tokens = 0

    def value(self, now: float) -> float:
        """What the cache is worth: prompt tokens it saved from being computed, halved every `VALUE_HALF_LIFE_S`."""
        return self._value * math.exp2((self._value_time - now) / VALUE_HALF_LIFE_S)

    def check_integrity(self, requests: Iterable[Request]) -> None:
        """Raise AssertionError when blocks leaked, are shared wrongly or tables do not cover what was computed."""
        requests = list(requests)
        self.pool.check_integrity(request.block_ids[request.num_released_blocks :] for request in requests)
        for request in requests:
            covered = len(request.block_ids) * self.block_size
            assert request.num_computed_tokens <= covered, f"{request.request_id}: tokens without a block"
            assert not any(request.block_ids[: request.num_released_blocks]), (
                f"{request.request_id} keeps unseen blocks"
            )
            for block in request.block_ids[max(request.num_registered_blocks, request.num_released_blocks) :]:
                assert self.pool.ref_counts[block] == 1, f"{request.request_id} would write shared block {block}"

    def _find(self, block_hashes: Sequence[bytes]) -> list[int]:
        return self._find_run(block_hashes) if self.window is None else self._find_window(block_hashes)

    def _find_run(self, block_hashes: Iterable[bytes]) -> list[int]:
        found: list[int] = []
        for block_hash in block_hashes:
            block = self.pool.find(block_hash)
            if block is None:
                break
            found.append(block)
        return found

    def _find_window(self, block_hashes: Sequence[bytes]) -> list[int]:
        """The longest prefix of which the blocks that its next token sees are cached."""
        found = [self.pool.find(block_hash) for block_hash in block_hashes]
        missing = [place for place, block in enumerate(found) if block is None]
        # Prefixes end before a missing block; between two of these, or after the last, the longest is the one to try.
        for start, end in zip([*missing[::-1], -1], [len(found), *missing[::-1]], strict=True):
            unseen = self._num_unseen(end * self.block_size)
            if start < unseen or start == -1:
                return [NULL_BLOCK] * unseen + [block for block in found[unseen:end] if block is not None]
        raise AssertionError

    def _num_unseen(self, num_tokens: int) -> int:
        """How many blocks at the beginning the token after `num_tokens` does not see."""
        return 0 if self.window is None else max(0, num_tokens + 1 - self.window) // self.block_size

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)
