"""Which KV blocks lie in files, and which files go when there is no room. Torch-free; touches no file.

All files of this engine's blocks are of one size. What other models, or this one with other settings, left in the
folder counts as taken too, since the volume holds both; where room is needed it goes first, oldest first.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final


class DiskTier:
    """The books of one folder that may take `size` bytes, which are at least one file's."""

    def __init__(self, size: int, file_bytes: int) -> None:
        assert 0 < file_bytes <= size, (file_bytes, size)
        self.size: Final = size
        self.file_bytes: Final = file_bytes
        self.used = 0
        self._own: OrderedDict[bytes, None] = OrderedDict()
        self._foreign: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._own)

    def __contains__(self, block_hash: bytes) -> bool:
        return block_hash in self._own

    @property
    def capacity(self) -> int:
        """Most files of ours that there can be."""
        return self.size // self.file_bytes

    def restore(self, own: Iterable[bytes], foreign: Iterable[tuple[str, int]]) -> list[bytes | str]:
        """Take over what was found in the folder, oldest first; returns what must go since it is too much."""
        for path, nbytes in foreign:
            self._foreign[path] = nbytes
            self.used += nbytes
        for block_hash in own:
            self._own[block_hash] = None
            self.used += self.file_bytes
        return self._make_room(0)

    def touch(self, block_hash: bytes) -> None:
        """It was used: it goes last."""
        self._own.move_to_end(block_hash)

    def add(self, block_hash: bytes) -> list[bytes | str]:
        """Make room for a file and count it; returns what must go: our own by hash, others by path."""
        assert block_hash not in self._own
        doomed = self._make_room(self.file_bytes)
        self._own[block_hash] = None
        self.used += self.file_bytes
        return doomed

    def discard(self, block_hash: bytes) -> None:
        """Forget a file that is gone, or was never written. Harmless for what is not known."""
        if block_hash in self._own:
            del self._own[block_hash]
            self.used -= self.file_bytes

    def hashes(self) -> list[bytes]:
        """Contents in the order in which they would go."""
        return list(self._own)

    def check_integrity(self) -> None:
        """Raise AssertionError when the books do not add up."""
        assert self.used == len(self._own) * self.file_bytes + sum(self._foreign.values()), "bytes on disk are lost"
        assert self.used <= self.size, "more is on disk than may be"

    def _make_room(self, nbytes: int) -> list[bytes | str]:
        doomed: list[bytes | str] = []
        while self.used + nbytes > self.size:
            if self._foreign:
                path, size = self._foreign.popitem(last=False)
                self.used -= size
                doomed.append(path)
            else:
                block_hash, _ = self._own.popitem(last=False)
                self.used -= self.file_bytes
                doomed.append(block_hash)
        return doomed
