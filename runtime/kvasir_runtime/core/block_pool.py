"""Who holds which KV block, and which block goes next when one is needed. Torch-free.

Blocks are numbers. A block is *active* while some sequence refers to it, else *free*. A free block may still hold
the KV of known tokens (*cached*): it stays findable by its content hash until it is taken for something else.

Free blocks wait in doubly linked lists kept in flat arrays, so that taking the oldest, adding and removing from the
middle (a cached block that is hit) cost O(1) and no Python object exists per block. With `lru` there is one list.
With `lfu` there is one list per worth, where worth = hits (capped) + age, and age is the worth of the block evicted
last: frequently used blocks outlive others but not for ever.
Source: Arlitt et al., Evaluating content management techniques for Web proxy caches (2000): LFU with dynamic aging.

Cached blocks may be *pinned* for a while. A pinned block is as free as any other, so that no pin can ever make a
request wait or fail; it is only taken last, when no other free block is left.
"""

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Final, Literal

NULL_BLOCK: Final = 0
"""Never given to a sequence: what padding in block tables points at."""

_MAX_HITS: Final = 7


class BlockPool:
    """`num_blocks` blocks, of which block 0 is the null block."""

    def __init__(
        self,
        num_blocks: int,
        eviction_policy: Literal["lru", "lfu"] = "lru",
        on_evict: Callable[[int, bytes], None] | None = None,
    ) -> None:
        """`on_evict` hears of a cached block, and its content's hash, before it is taken for something else."""
        assert num_blocks >= 2, num_blocks
        self._on_evict = on_evict
        self.num_blocks: Final = num_blocks
        self.num_lists: Final = 1 if eviction_policy == "lru" else _MAX_HITS + 1
        self.ref_counts: Final = array("i", [0]) * num_blocks
        self.num_free = 0
        self.num_cached_free = 0
        self.evictions = 0
        self._hits = array("i", [0]) * num_blocks
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        # Entry `num_blocks + i` is the sentinel of list i: its next is the list's head, its previous the tail.
        sentinels = range(num_blocks, num_blocks + self.num_lists + 1)
        self._pinned_sentinel: Final = sentinels[-1]
        self._next = array("i", [-1]) * num_blocks + array("i", sentinels)
        self._previous = array("i", [-1]) * num_blocks + array("i", sentinels)
        self._pinned_until: dict[int, float] = {}
        self._next_expiry = math.inf
        self._age = 0
        self.ref_counts[NULL_BLOCK] = 1
        for block in range(1, num_blocks):
            self._append(block)

    @property
    def num_usable(self) -> int:
        """Blocks that sequences can ever hold."""
        return self.num_blocks - 1

    @property
    def num_active(self) -> int:
        return self.num_usable - self.num_free

    @property
    def num_pinned(self) -> int:
        return len(self._pinned_until)

    def find(self, block_hash: bytes) -> int | None:
        """The block with this content, active or free; None when there is none. Changes nothing."""
        return self._block_of.get(block_hash)

    def hash_of(self, block: int) -> bytes | None:
        return self._hash_of[block]

    def allocate(self, count: int) -> list[int]:
        """Take `count` free blocks, each with one reference; what they held is forgotten.

        The caller has made sure that so many are free.
        """
        assert count <= self.num_free, (count, self.num_free)
        return [self._evict() for _ in range(count)]

    def acquire(self, blocks: Iterable[int]) -> None:
        """Refer once more to cached blocks that a prefix was found in."""
        for block in blocks:
            if self.ref_counts[block] == 0:
                self._unlink(block)
                self.num_cached_free -= 1
            self.ref_counts[block] += 1
            self._hits[block] = min(self._hits[block] + 1, _MAX_HITS)

    def release(self, blocks: Sequence[int]) -> None:
        """Give back one reference to each of a sequence's blocks, in the sequence's order.

        Blocks that nobody refers to any more become free: the last of the sequence is the first to go, since a
        prefix is of use without its end but not the other way round; those without content go before all others.
        """
        for block in reversed(blocks):
            self.ref_counts[block] -= 1
            assert self.ref_counts[block] >= 0, block
            if self.ref_counts[block] > 0:
                continue
            if self._hash_of[block] is None:
                self._prepend(block)
            else:
                self._append(block)
                self.num_cached_free += 1

    def register(self, block: int, block_hash: bytes) -> bool:
        """Make a full block findable. False, and nothing changed, when another block holds the same content."""
        assert self.ref_counts[block] > 0, block
        assert self._hash_of[block] is None, block
        if block_hash in self._block_of:
            return False
        self._block_of[block_hash] = block
        self._hash_of[block] = block_hash
        return True

    def pin(self, blocks: Iterable[int], until: float, limit: int) -> int:
        """Keep cached blocks from being taken before others, until the time `until`; returns how many are.

        In the order given, no more than `limit` blocks in all; those that are pinned already count, and keep the
        later of both times.
        """
        count = 0
        for block in blocks:
            assert self._hash_of[block] is not None, block
            if block not in self._pinned_until and self.num_pinned >= limit:
                break
            free = self.ref_counts[block] == 0
            if free:
                self._unlink(block)
            self._pinned_until[block] = max(until, self._pinned_until.get(block, until))
            if free:
                self._append(block)
            count += 1
        self._next_expiry = min(self._next_expiry, until)
        return count

    def unpin_expired(self, now: float) -> None:
        """Let go of the pins whose time is over: their blocks are the last used of the others."""
        if now < self._next_expiry:
            return
        for block in [block for block, until in self._pinned_until.items() if until <= now]:
            free = self.ref_counts[block] == 0
            if free:
                self._unlink(block)
            del self._pinned_until[block]
            if free:
                self._append(block)
        self._next_expiry = min(self._pinned_until.values(), default=math.inf)

    def forget_cached(self) -> None:
        """Drop the content of all free blocks, as when the weights were replaced."""
        self.unpin_expired(math.inf)
        for block in list(self.free_blocks()):
            self._forget(block)
        self.num_cached_free = 0

    def free_blocks(self) -> Iterator[int]:
        """Free blocks in the order in which they would be taken."""
        sentinels = [self._sentinel(self._age + offset) for offset in range(self.num_lists)]
        for sentinel in (*sentinels, self._pinned_sentinel):
            block = self._next[sentinel]
            while block != sentinel:
                yield block
                block = self._next[block]

    def check_integrity(self, tables: Iterable[Sequence[int]]) -> None:
        """Compare the books with the sequences' block tables. Raises AssertionError; costs O(blocks)."""
        expected = array("i", [0]) * self.num_blocks
        for block in chain([NULL_BLOCK], *tables):
            expected[block] += 1
        if expected != self.ref_counts:
            block = next(block for block, count in enumerate(self.ref_counts) if count != expected[block])
            msg = f"block {block} has {self.ref_counts[block]} references, {expected[block]} tables name it"
            raise AssertionError(msg)
        free = list(self.free_blocks())
        assert len(free) == len(set(free)) == self.num_free, "the free lists and their count differ"
        assert not any(self.ref_counts[block] for block in free), "a referenced block is in a free list"
        assert self.num_free == self.ref_counts.count(0), "a block is lost: neither referenced nor free"
        assert self.num_cached_free == sum(self._hash_of[block] is not None for block in free)
        for block_hash, block in self._block_of.items():
            assert self._hash_of[block] == block_hash, f"block {block} is listed under a hash it does not bear"
        assert len(self._block_of) == sum(value is not None for value in self._hash_of)
        assert all(self._hash_of[block] is not None for block in self._pinned_until), (
            "a block without content is pinned"
        )
        pinned = [block for block in free if block in self._pinned_until]
        assert free[len(free) - len(pinned) :] == pinned, "a pinned block would be taken before one that is not"

    def _evict(self) -> int:
        block = self._oldest()
        self._unlink(block)
        block_hash = self._hash_of[block]
        if block_hash is not None:
            if self._on_evict is not None:
                self._on_evict(block, block_hash)
            self._forget(block)
            self.num_cached_free -= 1
            self.evictions += 1
        self.ref_counts[block] = 1
        return block

    def _oldest(self) -> int:
        for offset in range(self.num_lists):
            block = self._next[self._sentinel(self._age + offset)]
            if block < self.num_blocks:
                self._age += offset
                return block
        block = self._next[self._pinned_sentinel]
        assert block < self.num_blocks, "no block is free"
        return block

    def _forget(self, block: int) -> None:
        block_hash = self._hash_of[block]
        if block_hash is not None:
            del self._block_of[block_hash]
            self._hash_of[block] = None
        self._hits[block] = 0
        self._pinned_until.pop(block, None)

    def _sentinel(self, worth: int) -> int:
        return self.num_blocks + worth % self.num_lists

    def _append(self, block: int) -> None:
        sentinel = self._sentinel(self._age + self._hits[block])
        if block in self._pinned_until:
            sentinel = self._pinned_sentinel
        self._link(self._previous[sentinel], block, sentinel)

    def _prepend(self, block: int) -> None:
        sentinel = self._sentinel(self._age)
        self._link(sentinel, block, self._next[sentinel])

    def _link(self, before: int, block: int, after: int) -> None:
        self._next[before] = self._previous[after] = block
        self._previous[block], self._next[block] = before, after
        self.num_free += 1

    def _unlink(self, block: int) -> None:
        before, after = self._previous[block], self._next[block]
        self._next[before], self._previous[after] = after, before
        self._next[block] = self._previous[block] = -1
        self.num_free -= 1
