"""Content hashes: what they depend on, and that they are chained."""

from array import array

import pytest

from kvasir_runtime.core.block_hash import DIGEST_SIZE, extend_block_hashes, hash_root


def hashes(tokens: list[int], root: bytes = b"root", block_size: int = 4) -> list[bytes]:
    found: list[bytes] = []
    extend_block_hashes(found, root, array("i", tokens), block_size)
    return found


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (("model", "adapter", "salt"), ("other", "adapter", "salt")),
        (("model", "adapter", "salt"), ("model", "other", "salt")),
        (("model", "adapter", "salt"), ("model", "adapter", "other")),
        (("ab", "c", ""), ("a", "bc", "")),
        (("a", "", "b"), ("a", "b", "")),
    ],
)
def test_model_adapter_and_salt_are_told_apart(left: tuple[str, str, str], right: tuple[str, str, str]) -> None:
    """Each part counts by itself, not only what they are together."""
    assert hash_root(*left) == hash_root(*left)
    assert hash_root(*left) != hash_root(*right)
    assert not set(hashes([1] * 8, hash_root(*left))) & set(hashes([1] * 8, hash_root(*right)))


def test_a_block_stands_for_all_before_it() -> None:
    """Equal blocks behind different beginnings differ; equal beginnings agree; a block that is not full has none."""
    first, second, other = (
        hashes([1, 2, 3, 4, 5, 6, 7, 8]),
        hashes([1, 2, 3, 4, 5, 6, 7, 8, 9]),
        hashes([0, 2, 3, 4, 5, 6, 7, 8]),
    )
    assert first == second
    assert len({*first, *other}) == 4
    assert len(hashes([1, 1, 1, 1, 1, 1, 1, 1])) == len(set(hashes([1, 1, 1, 1, 1, 1, 1, 1]))) == 2
    assert {len(value) for value in first} == {DIGEST_SIZE}


def test_hashes_are_extended_where_they_end() -> None:
    """Token by token or at once: the same hashes."""
    grown: list[bytes] = []
    tokens = array("i", range(13))
    for end in range(14):
        extend_block_hashes(grown, b"root", tokens[:end], 4)
    assert grown == hashes(list(range(13)))
    assert len(grown) == 3
