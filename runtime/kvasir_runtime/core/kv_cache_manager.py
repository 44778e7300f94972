"""Gives sequences their KV blocks: found in the prefix cache, newly allocated, given back. Torch-free.

Where every layer has a sliding window, a token sees the last `window` tokens alone, itself included. Blocks that lie
wholly before that are given back while the sequence runs, and a cached prefix is of use where the blocks of its last
`window` - 1 tokens are there. In a block table the null block stands for those that are not needed.

With `tiers` (`core/kv_tiers.py`) a prefix may go on in host memory: its blocks are loaded in the step that admits its
request. What is in files alone is read beforehand, and the request waits for that, `READ_PATIENCE_S` at most.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal

from kvasir_runtime.core.block_hash import extend_block_hashes
from kvasir_runtime.core.block_pool import NULL_BLOCK, BlockPool
from kvasir_runtime.core.kv_tiers import KVTiers
from kvasir_runtime.core.prefix_heat import Origin, PrefixHeat
from kvasir_runtime.request import Request

VALUE_HALF_LIFE_S = 600.0
"""The cache's value forgets half of the tokens it saved in this time."""

PINNED_SHARE = 0.5
"""Of the blocks at most: the rest caches what users send now."""

READ_PATIENCE_S: Final = 2.0
"""How long a request waits for its blocks to be read from files before it is computed without them."""

IN_HOST: Final = -1
"""Among cached blocks: one whose content is to be loaded from host memory."""


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
        tiers: KVTiers | None = None,
    ) -> None:
        """`heat` is told of every user's prompt. `window` is the widest layer's, None where a layer has none.

        `step_tokens`: most tokens of one step; a longer prompt needs blocks for the window and a step alone.
        """
        self.window = window
        self._step_tokens = step_tokens
        self.block_size = block_size
        self.heat = heat
        self.tiers: Final = tiers
        self.pool = BlockPool(num_blocks, eviction_policy, None if tiers is None else self._evicted)
        self.query_tokens = 0
        self.hit_tokens = 0
        self.tier_hit_tokens = {"host": 0, "disk": 0}
        """Those of the hits that came from other tiers than the device."""
        self._idle_blocks: list[int] | None = None  # those that `save_unwritten` has yet to look at
        self._origin_of: list[Origin | None] = [None] * (0 if tiers is None else num_blocks)
        self._value = 0.0
        self._value_time = 0.0

    def find_cached(self, request: Request) -> list[int]:
        """The longest run of cached blocks at the start of `request`. Takes no references: valid until blocks move.

        With a window the first entries are null blocks, in place of those that no token to come will see. `IN_HOST`
        stands for those that `admit` has loaded. The last token is never taken from the cache: its logits are needed.
        """
        return self._find(self._usable_hashes(request))

    def is_ready(self, request: Request, now: float) -> bool:
        """Whether `request` need not wait for blocks in files. The first call has them read, if there are any."""
        if self.tiers is None or self.tiers.disk is None:
            return True
        if request.read_deadline is None:
            awaited = self._read_ahead(request, self.tiers)
            request.awaited_blocks = awaited
            request.read_deadline = now + READ_PATIENCE_S
        request.awaited_blocks = [each for each in request.awaited_blocks if self.tiers.is_reading(each)]
        return not request.awaited_blocks or now >= request.read_deadline

    def can_admit(self, request: Request, cached: list[int], spare: int) -> bool:
        """Whether the whole of `request` fits beside what runs, with `spare` blocks left for that to grow."""
        to_load = cached.count(IN_HOST)
        revived = sum(self.pool.ref_counts[block] == 0 for block in cached if block != IN_HOST)
        needed = self._blocks_for(request.num_tokens) - len(cached)
        if self.window is not None and self._step_tokens:
            needed = min(needed, self._blocks_for(self.window + self._step_tokens) + 1)
        return needed + to_load + revived + spare <= self.pool.num_free

    def admit(self, request: Request, cached: list[int], now: float) -> None:
        """Start `request` with the cached blocks as the beginning of its table."""
        assert not request.block_ids, request.request_id
        request.num_released_blocks = self._num_unseen(len(cached) * self.block_size)
        found = cached[request.num_released_blocks :]
        self.pool.acquire(block for block in found if block != IN_HOST)
        request.block_ids.extend(cached)
        loaded = {"host": 0, "disk": 0} if self.tiers is None else self._load(request, self.tiers)
        request.num_registered_blocks = len(cached)
        request.num_computed_tokens = len(cached) * self.block_size
        if request.num_cached_tokens is not None:  # it was preempted: what it asked for then counts
            return
        request.num_cached_tokens = request.num_computed_tokens
        request.tier_tokens = {tier: count * self.block_size for tier, count in loaded.items() if count}
        if request.background:
            return
        self.query_tokens += request.num_prompt_tokens
        self.hit_tokens += request.num_computed_tokens
        for tier, tokens in request.tier_tokens.items():
            self.tier_hit_tokens[tier] += tokens
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
            self._register(request, position)
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
        blocks = [block for block in found if block not in (NULL_BLOCK, IN_HOST)]
        self.pool.pin(blocks, until, int(self.pool.num_usable * PINNED_SHARE))

    def count_cached(self, block_hashes: Sequence[bytes]) -> int:
        """How many blocks of a chain, from its beginning on, a request would find in the cache."""
        return len(self._find(block_hashes))

    def save_unwritten(self) -> bool:
        """Order saves of cached blocks that have no file yet, the last to go first; False when there are none left.

        For an idle engine: the orders are carried out at once. As many as may be on their way to disk at a time.
        """
        tiers = self.tiers
        if tiers is None or tiers.disk is None or tiers.disk_state != "on":
            return False
        if self._idle_blocks is None:
            self._idle_blocks = self._cached_blocks()[-tiers.disk.capacity :]
        while self._idle_blocks and tiers.room_to_pass > 0:
            block = self._idle_blocks.pop()
            block_hash, origin = self.pool.hash_of(block), self._origin_of[block]
            if block_hash is not None and origin is not None:
                tiers.hit(block, block_hash, origin)
            if not self._idle_blocks:
                tiers.files_used(map(self.pool.hash_of, self._cached_blocks()))
        return bool(self._idle_blocks)

    def save_all(self) -> None:
        """Order saves of cached blocks as if they were evicted: of the last to go, as many as host memory holds."""
        if self.tiers is None:
            return
        for block in self._cached_blocks()[-self.tiers.host.num_slots :]:
            block_hash = self.pool.hash_of(block)
            assert block_hash is not None, block
            self._evicted(block, block_hash)

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

    def _usable_hashes(self, request: Request) -> list[bytes]:
        if request.hash_root is None or request.sampling.prompt_logprobs is not None:
            return []
        extend_block_hashes(request.block_hashes, request.hash_root, request.token_ids, self.block_size)
        return request.block_hashes[: (request.num_tokens - 1) // self.block_size]

    def _cached_blocks(self) -> list[int]:
        """Those that nobody refers to, in the order in which they would be taken."""
        return [block for block in self.pool.free_blocks() if self.pool.hash_of(block) is not None]

    def _evicted(self, block: int, block_hash: bytes) -> None:
        origin = self._origin_of[block]
        assert self.tiers is not None
        assert origin is not None, block
        self.tiers.evicted(block, block_hash, origin)

    def _register(self, request: Request, position: int) -> None:
        block = request.block_ids[position]
        if self.pool.register(block, request.block_hashes[position]) and self.tiers is not None:
            self._origin_of[block] = request.origin
            self._idle_blocks = None

    def _load(self, request: Request, tiers: KVTiers) -> dict[str, int]:
        """Take blocks for those entries of the new table that are in host memory; returns how many by origin."""
        table, hashes = request.block_ids, request.block_hashes
        places = [place for place, block in enumerate(table) if block == IN_HOST]
        tiers.hold([hashes[place] for place in places])  # first of all: what comes now may push out others
        for place in range(request.num_released_blocks, len(table)):
            if table[place] != IN_HOST:
                tiers.hit(table[place], hashes[place], request.origin)
        loaded = {"host": 0, "disk": 0}
        for place, block in zip(places, self.pool.allocate(len(places)), strict=True):
            table[place] = block
            self._register(request, place)
            loaded[tiers.load(hashes[place], block)] += 1
        return loaded

    def _read_ahead(self, request: Request, tiers: KVTiers) -> list[bytes]:
        hashes = self._usable_hashes(request)
        found = self._find(hashes, in_files=True)
        return tiers.read_ahead(
            [block_hash for block_hash, block in zip(hashes, found, strict=False) if block == IN_HOST], request.origin
        )

    def _find(self, block_hashes: Sequence[bytes], *, in_files: bool = False) -> list[int]:
        """With `in_files` what is in host memory, or could come there, is found alike."""
        find = self._may_find if in_files else self._locate
        return self._find_run(block_hashes, find) if self.window is None else self._find_window(block_hashes, find)

    def _locate(self, block_hash: bytes) -> int | None:
        block = self.pool.find(block_hash)
        return IN_HOST if block is None and self.tiers is not None and self.tiers.holds(block_hash) else block

    def _may_find(self, block_hash: bytes) -> int | None:
        block = self.pool.find(block_hash)
        return IN_HOST if block is None and self.tiers is not None and self.tiers.may_have(block_hash) else block

    def _find_run(self, block_hashes: Iterable[bytes], find: Callable[[bytes], int | None]) -> list[int]:
        found: list[int] = []
        for block_hash in block_hashes:
            block = find(block_hash)
            if block is None:
                break
            found.append(block)
        return found

    def _find_window(self, block_hashes: Sequence[bytes], find: Callable[[bytes], int | None]) -> list[int]:
        """The longest prefix of which the blocks that its next token sees are cached."""
        found = [find(block_hash) for block_hash in block_hashes]
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
