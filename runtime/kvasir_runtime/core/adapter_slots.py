"""Which adapters are in memory, and which of them may take part in a batch. Torch-free; decides, copies nothing.

| residency | where                                       | how many              | goes when                          |
|-----------|---------------------------------------------|-----------------------|------------------------------------|
| disk      | registered, its files are checked           | no bound              | it is unloaded                     |
| loading   | is being read, off the step's path          | one                   | it is read                         |
| host      | in host memory                              | `num_resident` in all | least recently used, and unclaimed |
| device    | holds a slot: sequences may be seated on it | `num_slots` of those  | least recently used, and idle      |

An adapter is its content's digest; "" is the base model, which needs nothing. A *pinned* adapter keeps its slot once it
has one. A *retired* one takes no new requests and is gone when its last one is finished. Adapters whose requests
wait at the queue's head are *claimed*, so that what is brought in for them is not thrown out before it was used.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

Residency = Literal["disk", "loading", "host", "device"]
NO_SLOT: Final = -1


@dataclass(slots=True)
class _Entry:
    pinned: bool
    in_memory: bool = False
    loading: bool = False
    retired: bool = False
    slot: int = NO_SLOT
    unfinished: int = 0
    """Sequences that wait or run."""
    seated: int = 0
    used: int = 0
    """When a sequence last took or left a seat, in ticks of this book."""


class AdapterSlots:
    """The book of all adapters; not thread-safe. Digests that are not registered are programming errors."""

    def __init__(self, num_slots: int = 0, num_resident: int = 0) -> None:
        self.num_resident: Final = num_resident
        self.version = 0
        """Grows with every change of a residency."""
        self._entries: dict[str, _Entry] = {}
        self._holders: list[str | None] = [None] * num_slots
        self._wanted: dict[str, None] = {}
        self._claimed: set[str] = set()
        self._activations: dict[int, str] = {}
        self._dropped: list[str] = []
        self._ticks = 0

    # Registration

    def register(self, digest: str, *, pinned: bool) -> bool:
        """Let an adapter take requests, or let it do so again. Returns whether it must be read first."""
        entry = self._entries.get(digest)
        if entry is not None:
            entry.pinned, entry.retired = pinned, False
            self._place_pinned(digest, entry)
            return False
        self._entries[digest] = _Entry(pinned)
        self._wanted[digest] = None
        self.version += 1
        return True

    def retire(self, digest: str) -> None:
        """Take no new requests; gone at once, or with the last request. Harmless for what is not there."""
        entry = self._entries.get(digest)
        if entry is not None:
            entry.retired, entry.pinned = True, False
            self._forget_if_done(digest, entry)

    def accepts(self, digest: str) -> bool:
        """Whether requests for it may be added."""
        entry = self._entries.get(digest)
        return digest == "" or (entry is not None and not entry.retired)

    def states(self) -> Iterator[tuple[str, Residency]]:
        for digest, entry in self._entries.items():
            yield digest, _residency(entry)

    # Requests

    def sequence_added(self, digest: str) -> None:
        if digest:
            self._entries[digest].unfinished += 1

    def sequence_finished(self, digest: str) -> None:
        if digest:
            entry = self._entries[digest]
            entry.unfinished -= 1
            if entry.unfinished == 0:
                self._claimed.discard(digest)
            self._forget_if_done(digest, entry)

    def start_round(self) -> None:
        """The scheduler looks at the queue from its head again: earlier claims are void."""
        self._claimed.clear()

    def can_seat(self, digest: str) -> bool:
        """Whether a sequence can be seated now. If not, the adapter is claimed, and read if it must be."""
        if not digest:
            return True
        entry = self._entries[digest]
        self._claimed.add(digest)
        if not entry.in_memory:
            if not entry.loading:
                self._wanted.setdefault(digest)
            return False
        return entry.slot != NO_SLOT or self._find_slot() != NO_SLOT

    def could_take_a_slot(self, digest: str) -> bool:
        """Whether nothing but a slot is missing."""
        return bool(digest) and self._entries[digest].in_memory

    def seat(self, digest: str) -> int:
        """Seat a sequence where `can_seat` said so; returns the adapter's slot."""
        if not digest:
            return NO_SLOT
        entry = self._entries[digest]
        if entry.slot == NO_SLOT:
            self._take_slot(digest, entry, self._find_slot())
        entry.seated += 1
        self._claimed.discard(digest)
        self._touch(entry)
        return entry.slot

    def unseat(self, digest: str) -> None:
        if digest:
            entry = self._entries[digest]
            entry.seated -= 1
            self._touch(entry)

    # Memory

    def next_load(self) -> str | None:
        """The adapter to read next, once there is room for it (it counts as loading then); None: nothing to do."""
        digest = next(iter(self._wanted), None)
        if digest is None or not self._make_room():
            return None
        del self._wanted[digest]
        self._entries[digest].loading = True
        self.version += 1
        return digest

    def loaded(self, digest: str) -> bool:
        """It is in memory. False when nobody wants it any more: then it is to be thrown away."""
        entry = self._entries[digest]
        entry.loading, entry.in_memory = False, True
        self.version += 1
        self._touch(entry)
        self._forget_if_done(digest, entry)
        if digest in self._entries:
            self._place_pinned(digest, entry)
        return digest in self._entries

    def failed(self, digest: str) -> None:
        """It cannot be read: no new requests, and its requests must be ended by the caller."""
        self._entries[digest].loading = False
        self.version += 1
        self.retire(digest)

    def take_activations(self) -> list[tuple[int, str]]:
        """Slots that changed their adapter since the last call, to be followed before the next step computes."""
        activations, self._activations = list(self._activations.items()), {}
        return activations

    def take_dropped(self) -> list[str]:
        """Adapters whose memory is to be freed, now."""
        dropped, self._dropped = self._dropped, []
        return dropped

    @property
    def has_wanted(self) -> bool:
        return bool(self._wanted)

    def check_integrity(self) -> None:
        """Raise AssertionError when slots and entries contradict each other."""
        for slot, holder in enumerate(self._holders):
            assert holder is None or self._entries[holder].slot == slot, f"slot {slot} and {holder} differ"
        for digest, entry in self._entries.items():
            assert entry.slot == NO_SLOT or self._holders[entry.slot] == digest, f"{digest} has lost its slot"
            assert 0 <= entry.seated <= entry.unfinished, f"{digest}: {entry.seated} seated of {entry.unfinished}"
            assert not entry.seated or entry.slot != NO_SLOT, f"{digest} is seated without a slot"
            assert entry.slot == NO_SLOT or entry.in_memory, f"{digest} has a slot but is not in memory"
        assert self._num_in_memory() <= self.num_resident, "more adapters in memory than there is room for"

    def _num_in_memory(self) -> int:
        return sum(entry.in_memory or entry.loading for entry in self._entries.values())

    def _make_room(self) -> bool:
        if self._num_in_memory() < self.num_resident:
            return True
        idle = [
            digest
            for digest, entry in self._entries.items()
            if entry.in_memory and not (entry.seated or entry.pinned or entry.retired or digest in self._claimed)
        ]
        if not idle:
            return False
        digest = min(idle, key=lambda digest: self._entries[digest].used)
        self._leave_memory(digest, self._entries[digest])
        return True

    def _find_slot(self) -> int:
        """A free slot, else that of the least recently used adapter on which nobody sits; NO_SLOT without either."""
        if None in self._holders:
            return self._holders.index(None)
        idle = [
            (entry.used, slot)
            for slot, holder in enumerate(self._holders)
            if holder is not None and not ((entry := self._entries[holder]).seated or entry.pinned)
        ]
        return min(idle)[1] if idle else NO_SLOT

    def _take_slot(self, digest: str, entry: _Entry, slot: int) -> None:
        holder = self._holders[slot]
        if holder is not None:
            self._entries[holder].slot = NO_SLOT
        self._holders[slot], entry.slot = digest, slot
        self._activations[slot] = digest
        self.version += 1

    def _place_pinned(self, digest: str, entry: _Entry) -> None:
        if entry.pinned and entry.in_memory and entry.slot == NO_SLOT and (slot := self._find_slot()) != NO_SLOT:
            self._take_slot(digest, entry, slot)

    def _forget_if_done(self, digest: str, entry: _Entry) -> None:
        if entry.retired and not entry.unfinished and not entry.loading:
            self._leave_memory(digest, entry)
            self._wanted.pop(digest, None)
            del self._entries[digest]

    def _leave_memory(self, digest: str, entry: _Entry) -> None:
        if entry.slot != NO_SLOT:
            self._holders[entry.slot] = None
            self._activations.pop(entry.slot, None)
            entry.slot = NO_SLOT
        if entry.in_memory:
            self._dropped.append(digest)
        entry.in_memory = False
        self.version += 1

    def _touch(self, entry: _Entry) -> None:
        self._ticks += 1
        entry.used = self._ticks


def _residency(entry: _Entry) -> Residency:
    if entry.slot != NO_SLOT:
        return "device"
    if entry.in_memory:
        return "host"
    return "loading" if entry.loading else "disk"
