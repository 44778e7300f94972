"""Copies between the KV cache and host memory, bit by bit."""

import pytest
import torch

from kvasir_runtime.worker import host_pool
from kvasir_runtime.worker.host_pool import HostPool
from kvasir_runtime.worker.kv_cache import KVCache


def make_cache(dtype: torch.dtype) -> KVCache:
    """Random bits, among them NaNs of all kinds."""
    cache = KVCache(num_layers=3, num_blocks=12, num_kv_heads=2, block_size=4, head_dim=16, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    for layer in cache.layers:
        layer.view(torch.uint8).copy_(torch.randint(256, layer.view(torch.uint8).shape, generator=generator))
    return cache


def block_bytes(cache: KVCache, block: int) -> bytes:
    return b"".join(layer[:, block].contiguous().view(torch.uint8).numpy().tobytes() for layer in cache.layers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_blocks_come_back_bit_by_bit(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """To other blocks, in portions; a slot's bytes are a block's; other blocks stay as they are."""
    cache = make_cache(dtype)
    pool = HostPool(cache, 6)
    monkeypatch.setattr(host_pool, "_PORTION_BYTES", 2 * pool.slot_bytes)
    before = [block_bytes(cache, block) for block in range(12)]
    pool.copy([(3, 5), (7, 0), (1, 2), (9, 1), (4, 4)], [])
    assert bytes(pool.slot(5)) == before[3]
    for layer in cache.layers:
        layer[:, [3, 7, 1, 9, 4]] = 0
    pool.copy([], [(5, 8), (0, 3), (2, 7), (1, 1), (4, 9)])
    after = [block_bytes(cache, block) for block in range(12)]
    expected = [*before]
    expected[8], expected[3], expected[7], expected[1], expected[9] = (before[block] for block in (3, 7, 1, 9, 4))
    expected[4] = bytes(len(before[4]))
    assert after == expected


def test_saves_come_before_loads() -> None:
    """A block may be saved and filled anew in one step, and a content saved and loaded."""
    cache = make_cache(torch.float32)
    pool = HostPool(cache, 2)
    pool.copy([(1, 0)], [])
    old, new = block_bytes(cache, 1), block_bytes(cache, 2)
    pool.copy([(2, 1)], [(0, 2), (1, 3)])
    assert (block_bytes(cache, 2), block_bytes(cache, 3)) == (old, new)


def test_memory_is_as_planned_and_can_be_given_back() -> None:
    """Slots of whole blocks; nothing is left after `free`, and it can be had again."""
    cache = make_cache(torch.bfloat16)
    pool = HostPool(cache, 6)
    assert pool.nbytes == 6 * pool.slot_bytes == 6 * cache.nbytes // 12
    pool.slot(1)[:] = b"\x07" * pool.slot_bytes
    pool.free()
    assert pool.nbytes == 0
    pool.allocate()
    assert bytes(pool.slot(1)) == bytes(pool.slot_bytes)
