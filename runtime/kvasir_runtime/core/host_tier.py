"""Which evicted KV blocks host memory holds, and which goes next when one is needed. Torch-free.

A host block fills one slot, known by the content hash that it had on the device. One that is pinned stays: its bytes
are being read or written. The others go in the order in which they were last used.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from kvasir_runtime.core.prefix_heat import Origin


@dataclass(slots=True)
class HostBlock:
    """What lies in a slot.

    `ready`: the content is there, or will be before any step reads it. `from_disk`: it was read from a file and no
    request has used it yet.
    """

    slot: int
    origin: Origin
    ready: bool = True
    from_disk: bool = False
    pins: int = 0


class HostTier:
    """`num_slots` slots, all free at first."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots: Final = num_slots
        self._free = list(range(num_slots))[::-1]
        self._blocks: OrderedDict[bytes, HostBlock] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def num_free(self) -> int:
        return len(self._free)

    def get(self, block_hash: bytes) -> HostBlock | None:
        """What is known of a content, ready or not. Changes nothing."""
        return self._blocks.get(block_hash)

    def touch(self, block_hash: bytes) -> None:
        """It was used: it goes last."""
        self._blocks.move_to_end(block_hash)

    def add(self, block_hash: bytes, origin: Origin) -> HostBlock:
        """Give a content a slot, of which one must be free; it counts as used now."""
        assert block_hash not in self._blocks
        block = self._blocks[block_hash] = HostBlock(self._free.pop(), origin)
        return block

    def evict(self) -> bytes | None:
        """Forget the block that was not used for the longest time; None when all are pinned."""
        victim = next((block_hash for block_hash, block in self._blocks.items() if not block.pins), None)
        if victim is not None:
            self.discard(victim)
        return victim

    def discard(self, block_hash: bytes) -> None:
        """Forget a content, which must not be pinned; its slot is free."""
        block = self._blocks.pop(block_hash)
        assert block.pins == 0, block
        self._free.append(block.slot)

    def items(self) -> Iterator[tuple[bytes, HostBlock]]:
        """Contents in the order in which they would go."""
        yield from self._blocks.items()

    def check_integrity(self) -> None:
        """Raise AssertionError when a slot is lost or used twice."""
        slots = [block.slot for block in self._blocks.values()] + self._free
        assert sorted(slots) == list(range(self.num_slots)), "a slot of host memory is lost or used twice"
        assert all(block.pins >= 0 for block in self._blocks.values()), "a host block was let go too often"
