"""Memory in huge pages: zeros, aligned, shared by small pieces, and given back."""

import gc
import itertools
import re
import sys
from pathlib import Path

import pytest

from kvasir_runtime.huge_pages import HUGE_PAGE, Arena, zeroed


def test_zeros_from_a_huge_page_on() -> None:
    memory = zeroed(5 << 20)
    assert memory.nbytes == 5 << 20
    assert not memory.any()
    assert memory.ctypes.data % HUGE_PAGE == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_nobody_holds_goes_back_to_the_system() -> None:
    gc.collect()
    before = mapped()
    memory = zeroed(512 << 20)
    assert mapped() - before >= 512 << 20
    del memory
    assert mapped() - before < 512 << 20


def test_pieces_of_an_arena_are_apart_and_on_cache_lines() -> None:
    arena = Arena()
    pieces = [arena.take(size) for size in (1, 64, 65, 1000, 70 << 20, 3 << 20, 63 << 20)]
    spans = sorted((piece.data_ptr(), piece.data_ptr() + piece.nbytes) for piece in pieces)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    assert all(begin % 64 == 0 for begin, _ in spans)
    assert [piece.numel() for piece in pieces] == [1, 64, 65, 1000, 70 << 20, 3 << 20, 63 << 20]


def test_small_pieces_lie_side_by_side() -> None:
    arena = Arena()
    first, second = arena.take(100), arena.take(100)
    assert second.data_ptr() - first.data_ptr() == 128


def mapped() -> int:
    """Bytes of address space of this process."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"VmSize:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) << 10
