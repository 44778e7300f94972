"""Exact ids, reference counts and free-list order of the block pool."""

from typing import Literal

import pytest

from kvasir_runtime.core.block_pool import BlockPool


def fill(pool: BlockPool, count: int, first: int = 0) -> list[int]:
    """Allocate `count` blocks and give them the contents `first`, `first + 1` and so on."""
    blocks = pool.allocate(count)
    for offset, block in enumerate(blocks):
        assert pool.register(block, content(first + offset))
    return blocks


def content(number: int) -> bytes:
    return number.to_bytes(16, "little")


def test_blocks_are_taken_in_order_and_the_null_block_never() -> None:
    """A new pool gives 1, 2, 3 …; block 0 is nobody's."""
    pool = BlockPool(5)
    assert pool.allocate(3) == [1, 2, 3]
    assert pool.allocate(1) == [4]
    assert (pool.num_free, pool.num_active, pool.num_usable) == (0, 4, 4)


def test_the_end_of_a_sequence_is_reused_before_its_beginning() -> None:
    """Cached blocks of a released sequence join the tail in reverse; blocks without content go to the head."""
    pool = BlockPool(8)
    blocks = fill(pool, 3)
    partial = pool.allocate(1)
    assert blocks + partial == [1, 2, 3, 4]
    pool.release(blocks + partial)
    assert list(pool.free_blocks()) == [4, 5, 6, 7, 3, 2, 1]
    assert pool.num_cached_free == 3


def test_a_hit_takes_a_free_block_out_of_the_middle() -> None:
    """Acquiring cached blocks references them and leaves the order of the others as it was."""
    pool = BlockPool(6)
    pool.release(fill(pool, 5))
    assert list(pool.free_blocks()) == [5, 4, 3, 2, 1]
    pool.acquire([3])
    assert list(pool.free_blocks()) == [5, 4, 2, 1]
    assert list(pool.ref_counts) == [1, 0, 0, 1, 0, 0]
    pool.acquire([3])
    pool.release([3])
    assert pool.ref_counts[3] == 1
    pool.release([3])
    assert list(pool.free_blocks()) == [5, 4, 2, 1, 3]


def test_taking_a_cached_block_forgets_its_content() -> None:
    """An evicted block is not found any more; the others are."""
    pool = BlockPool(3)
    pool.release(fill(pool, 2))
    assert pool.allocate(1) == [2]
    assert pool.find(content(1)) is None
    assert pool.find(content(0)) == 1
    assert pool.evictions == 1


def test_equal_content_is_registered_once() -> None:
    """The second block with the same content stays anonymous and is the first to be reused."""
    pool = BlockPool(4)
    first, second = pool.allocate(2)
    assert pool.register(first, content(7))
    assert not pool.register(second, content(7))
    pool.release([first, second])
    assert list(pool.free_blocks()) == [second, 3, first]


def test_lfu_keeps_what_is_hit() -> None:
    """With `lfu` a block that was hit outlives blocks that were released later but never hit."""
    pool = BlockPool(4, "lfu")
    blocks = fill(pool, 3)
    pool.release(blocks)
    pool.acquire([3])
    pool.release([3])
    assert list(pool.free_blocks()) == [2, 1, 3]
    lru = BlockPool(4, "lru")
    lru.release(fill(lru, 3))
    lru.acquire([3])
    lru.release([3])
    lru.acquire([2])
    lru.release([2])
    assert list(lru.free_blocks()) == [1, 3, 2]


def test_lfu_forgets_old_fame() -> None:
    """Worth ages: after evictions of worth 2, a new block with 1 hit outranks an old one with 2."""
    pool = BlockPool(4, "lfu")
    old = fill(pool, 3)
    for _ in range(2):
        pool.acquire(old)
        pool.release(old)
    pool.release(old)
    assert list(pool.free_blocks()) == [3, 2, 1]
    new = fill(pool, 1, first=10)
    assert new == [3]
    pool.acquire(new)
    pool.release(new)
    pool.release(new)
    assert list(pool.free_blocks()) == [2, 1, 3]


def test_forget_cached_keeps_what_is_in_use() -> None:
    """Dropping cached contents leaves referenced blocks findable."""
    pool = BlockPool(4)
    used, free = fill(pool, 2)
    pool.release([free])
    pool.forget_cached()
    assert pool.find(content(0)) == used
    assert pool.find(content(1)) is None
    pool.check_integrity([[used]])


@pytest.mark.parametrize(
    ("tables", "message"),
    [([[1]], "block 2 has 1 references, 0 tables"), ([[1, 2], [2]], "block 2 has 1 references, 2 tables")],
)
def test_integrity_names_the_block(tables: list[list[int]], message: str) -> None:
    """A leaked or doubly used block is named with its counts."""
    pool = BlockPool(4)
    pool.allocate(2)
    with pytest.raises(AssertionError, match=message):
        pool.check_integrity(tables)


@pytest.mark.parametrize("policy", ["lru", "lfu"])
def test_pinned_blocks_are_free_but_taken_last(policy: Literal["lru", "lfu"]) -> None:
    """A pin changes the order alone: every block can still be had, and a pinned one that is taken is forgotten."""
    pool = BlockPool(6, policy)
    pool.release(fill(pool, 4))
    assert pool.pin([1, 2], until=60.0, limit=10) == 2
    assert list(pool.free_blocks()) == [5, 4, 3, 1, 2]
    assert (pool.num_free, pool.num_cached_free, pool.num_pinned) == (5, 4, 2)
    pool.check_integrity([])
    taken = pool.allocate(4)
    assert taken == [5, 4, 3, 1]
    assert (pool.num_pinned, pool.find(content(0)), pool.find(content(1))) == (1, None, 2)
    pool.check_integrity([taken])


def test_pins_survive_use_and_end_with_their_time() -> None:
    """A block that was used is pinned again; the later time counts; expired ones are the last used of the rest."""
    pool = BlockPool(5)
    pool.release(fill(pool, 4))
    pool.pin([1], until=60.0, limit=10)
    pool.pin([1, 2], until=30.0, limit=10)
    pool.acquire([1])
    pool.release([1])
    assert list(pool.free_blocks()) == [4, 3, 2, 1]
    pool.unpin_expired(29.0)
    assert pool.num_pinned == 2
    pool.unpin_expired(30.0)
    assert pool.num_pinned == 1
    pool.acquire([1])
    pool.unpin_expired(60.0)
    assert pool.num_pinned == 0
    pool.release([1])
    assert list(pool.free_blocks()) == [4, 3, 2, 1]
    pool.check_integrity([])


def test_pins_are_bounded_and_forgotten_with_the_cache() -> None:
    """No more blocks than the limit, the first ones first; dropping the cache's content drops the pins."""
    pool = BlockPool(8)
    pool.release(fill(pool, 5))
    assert pool.pin([1, 2, 3], until=60.0, limit=2) == 2
    assert pool.pin([2, 4], until=60.0, limit=2) == 1
    assert pool.num_pinned == 2
    pool.forget_cached()
    assert (pool.num_pinned, pool.num_free, pool.num_cached_free) == (0, 7, 0)
    pool.check_integrity([])
