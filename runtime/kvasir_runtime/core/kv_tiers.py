"""What becomes of KV blocks that the device evicts: host memory, files behind it, and back on a hit. Torch-free.

Decides only: copies between device and host are orders of the step (`SchedulerOutput.saves` and `.loads`), reading and
writing files are jobs for a thread. Rules:

- A block that the device evicts is saved to host memory, unless its content is there; the host block used least
  recently makes room. Where every slot takes part in a copy or a job, the block is lost: nothing ever waits for a save.
- Of a step's orders all saves are carried out before all loads, and both before the model runs. So a block may be saved
  and loaded in one step, and nothing that is computed can overwrite what is still to be saved.
- A host block that is loaded stays. What a step's orders name, and what a job reads or writes, is pinned until then.
- Files are written of blocks that the device evicted, of blocks that were hit there (evidence that they will be again,
  and the busiest are never evicted), and of all others while the engine is idle. Salted ones never, unless allowed.
- Blocks that are read come to host memory first and are loaded from there.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from kvasir_runtime.core.disk_tier import DiskTier
from kvasir_runtime.core.host_tier import HostBlock, HostTier
from kvasir_runtime.core.prefix_heat import Origin

MAX_WRITES: Final = 16
"""Blocks on their way to disk at a time: more would only pin host memory."""

Outcome = Literal["done", "missing", "corrupt", "foreign", "full", "failed"]
"""Of a job. `full`: no room on the volume; `failed`: the volume gave another error."""


@dataclass(frozen=True, slots=True)
class WriteFile:
    block_hash: bytes
    slot: int
    adapter_digest: str


@dataclass(frozen=True, slots=True)
class ReadFile:
    block_hash: bytes
    slot: int
    adapter_digest: str


@dataclass(frozen=True, slots=True)
class RemoveFile:
    """One of ours by its hash, another's by its path in the folder."""

    name: bytes | str


Job = WriteFile | ReadFile | RemoveFile


@dataclass(slots=True)
class TierCounts:
    """Blocks, since the start. `dropped` found no room in host memory, or left it before they were written."""

    saved: int = 0
    loaded: int = 0
    written: int = 0
    read: int = 0
    dropped: int = 0
    rejected: dict[str, int] = field(default_factory=lambda: {"corrupt": 0, "foreign": 0, "missing": 0})
    """Files that were not used, by reason."""


class KVTiers:
    """Host memory of `num_slots` blocks and, where `disk` is given, files behind it."""

    def __init__(self, num_slots: int, disk: DiskTier | None = None, *, writes_salted: bool = False) -> None:
        self.host: Final = HostTier(num_slots)
        self.disk: Final = disk
        self.counts: Final = TierCounts()
        self.disk_state: Literal["none", "on", "full", "failed"] = "none" if disk is None else "on"
        self._writes_salted = writes_salted
        self._saves: list[tuple[int, int]] = []
        self._loads: dict[int, int] = {}
        self._held: list[HostBlock] = []
        self._unwritten: OrderedDict[bytes, None] = OrderedDict()
        self._writing: set[bytes] = set()
        self._reading: set[bytes] = set()
        self._passing: set[bytes] = set()  # in host memory on their way to a file alone
        self._jobs: list[Job] = []

    # What a step asks for

    def holds(self, block_hash: bytes) -> bool:
        """Whether a step may load this content."""
        place = self.host.get(block_hash)
        return place is not None and place.ready

    def may_have(self, block_hash: bytes) -> bool:
        """Whether the content is in host memory, on its way there, or in a file."""
        on_disk = self.disk is not None and self.disk_state != "failed" and block_hash in self.disk
        return on_disk or self.host.get(block_hash) is not None

    def is_reading(self, block_hash: bytes) -> bool:
        return block_hash in self._reading

    def evicted(self, block: int, block_hash: bytes, origin: Origin) -> None:
        """The device takes a block for something else: have its content saved before the step overwrites it."""
        place = self.host.get(block_hash)
        if place is not None:
            self._passing.discard(block_hash)
            self.host.touch(block_hash)
        else:
            self._save(block, block_hash, origin)

    def hit(self, block: int, block_hash: bytes, origin: Origin) -> None:
        """A block of the device is worth a file, if it has none and few are under way."""
        self.files_used([block_hash])
        if not self._wants_file(block_hash, origin):
            return
        place = self.host.get(block_hash)
        if place is not None and place.ready:
            self._unwritten.setdefault(block_hash)
        elif place is None and self.room_to_pass > 0 and self._save(block, block_hash, origin):
            self._passing.add(block_hash)
            self._unwritten.move_to_end(block_hash, last=False)

    def hold(self, block_hashes: Sequence[bytes]) -> None:
        """Keep what the next step will load, in the order of a prompt, whatever else is evicted meanwhile."""
        for block_hash in reversed(block_hashes):  # the beginning of a prompt is of use without its end
            place = self.host.get(block_hash)
            assert place is not None, block_hash
            assert place.ready, block_hash
            self._passing.discard(block_hash)
            self.host.touch(block_hash)
            self._hold(place)

    def load(self, block_hash: bytes, block: int) -> Literal["host", "disk"]:
        """Have a content that is held copied to a block of the device. Returns where it came from."""
        place = self.host.get(block_hash)
        assert place is not None, block_hash
        self._loads[block] = place.slot
        self.counts.loaded += 1
        source: Literal["host", "disk"] = "disk" if place.from_disk else "host"
        place.from_disk = False
        if self.disk is not None and block_hash in self.disk:
            self.disk.touch(block_hash)
        return source

    def take_orders(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Saves (device block, slot), then loads (slot, device block); `copied` must follow."""
        saves, self._saves = self._saves, []
        loads = [(slot, block) for block, slot in self._loads.items()]
        self._loads = {}
        return saves, loads

    def copied(self) -> None:
        """All orders that were taken have been carried out."""
        assert not self._saves, "orders were not taken"
        assert not self._loads, "orders were not taken"
        for place in self._held:
            place.pins -= 1
        self._held = []

    # What files are for

    @property
    def room_to_pass(self) -> int:
        """How many more blocks of the device may be sent on their way to disk now."""
        return MAX_WRITES - len(self._passing) if self.disk_state == "on" else 0

    def files_used(self, block_hashes: Iterable[bytes | None]) -> None:
        """Let files go in this order, after all others."""
        for block_hash in block_hashes:
            if self.disk is not None and block_hash is not None and block_hash in self.disk:
                self.disk.touch(block_hash)

    @property
    def has_jobs(self) -> bool:
        """Whether anything is being read or written, or waits to be."""
        return bool(self._jobs or self._reading or self._writing or (self._unwritten and self.disk_state == "on"))

    @property
    def is_reading_any(self) -> bool:
        return bool(self._reading)

    def read_ahead(self, block_hashes: Sequence[bytes], origin: Origin) -> list[bytes]:
        """Have those of a prompt's blocks read that are in files alone; returns those that are on their way.

        At most half of the host memory is filled at a time.
        """
        for block_hash in reversed(block_hashes):
            if self.host.get(block_hash) is not None:
                self.host.touch(block_hash)
        awaited: list[bytes] = []
        for block_hash in block_hashes:
            if self.host.get(block_hash) is None and not self._begin_to_read(block_hash, origin):
                break
            if block_hash in self._reading:
                awaited.append(block_hash)
        return awaited

    def restored(self, doomed: Sequence[bytes | str], *, corrupt: int, foreign: int) -> None:
        """Hear what was found on disk at the start: what is too much, and what is of no use."""
        self._remove(doomed)
        self.counts.rejected["corrupt"] += corrupt
        self.counts.rejected["foreign"] += foreign

    def stop_writing(self) -> None:
        """Begin no more writes of what is known now; those under way go on."""
        self._give_up_writing()

    def take_jobs(self) -> list[Job]:
        """What a thread shall do now, in this order; `finished` must follow for each. Only when all was `copied`."""
        assert not self._held, "a copy is under way"
        while self._unwritten and len(self._writing) < MAX_WRITES and self.disk_state == "on":
            block_hash, _ = self._unwritten.popitem(last=False)
            self._begin_to_write(block_hash)
        jobs, self._jobs = self._jobs, []
        return jobs

    def finished(self, job: Job, outcome: Outcome) -> None:
        """A thread has done its job, or could not. A volume that fails is used no more, a full one written no more."""
        if outcome in ("full", "failed") and self.disk_state != "failed":
            self.disk_state = "full" if outcome == "full" else "failed"
            self._give_up_writing()
        if isinstance(job, WriteFile):
            self._written(job, outcome)
        elif isinstance(job, ReadFile):
            self._was_read(job, outcome)

    # What becomes of all of it

    def forget_adapter(self, digest: str) -> None:
        """Give back the host memory of an adapter that is gone; its files go when there is no room."""
        for block_hash, place in list(self.host.items()):
            if place.origin.adapter_digest == digest and not place.pins:
                self._discard(block_hash)

    def forget_host(self) -> None:
        """Forget what is in host memory, but for what a job reads or writes at this moment."""
        for block_hash, place in list(self.host.items()):
            if not place.pins:
                self._discard(block_hash)

    def forget_disk(self) -> int:
        """Have all files of this engine removed; returns how many. Only while none is read or written."""
        assert not self._reading | self._writing, "files are in use"
        self._give_up_writing()
        found = self.disk.hashes() if self.disk is not None else []
        self._remove(found)
        for block_hash in found:
            self._forget_file(block_hash)
        return len(found)

    def check_integrity(self) -> None:
        """Raise AssertionError when the books contradict each other. Only when all was `copied`."""
        self.host.check_integrity()
        assert not self._held, "a copy is under way"
        busy = {block_hash for block_hash, place in self.host.items() if place.pins}
        assert busy == self._reading | self._writing, "host memory is pinned for nothing"
        unready = {block_hash for block_hash, place in self.host.items() if not place.ready}
        assert unready == self._reading, "host memory waits for nothing"
        assert self._passing <= self._writing | self._unwritten.keys(), "a file is to come that nobody writes"
        assert all(self.holds(block_hash) for block_hash in self._unwritten), "what is to be written is gone"
        if self.disk is not None:
            self.disk.check_integrity()

    def _wants_file(self, block_hash: bytes, origin: Origin) -> bool:
        if self.disk is None or self.disk_state != "on" or block_hash in self.disk or block_hash in self._writing:
            return False
        return self._writes_salted or not origin.cache_salt

    def _save(self, block: int, block_hash: bytes, origin: Origin) -> bool:
        place = self._take_slot(block_hash, origin)
        if place is None:
            return False
        self._hold(place)
        self._saves.append((block, place.slot))
        self.counts.saved += 1
        if self._wants_file(block_hash, origin):
            self._unwritten[block_hash] = None
        return True

    def _hold(self, place: HostBlock) -> None:
        place.pins += 1
        self._held.append(place)

    def _take_slot(self, block_hash: bytes, origin: Origin) -> HostBlock | None:
        if not self.host.num_free:
            victim = self.host.evict()
            if victim is None:
                self.counts.dropped += 1
                return None
            if victim in self._unwritten:
                self.counts.dropped += 1
                self._forget_writing(victim)
        return self.host.add(block_hash, origin)

    def _discard(self, block_hash: bytes) -> None:
        self._forget_writing(block_hash)
        self.host.discard(block_hash)

    def _forget_writing(self, block_hash: bytes) -> None:
        self._unwritten.pop(block_hash, None)
        self._passing.discard(block_hash)

    def _begin_to_write(self, block_hash: bytes) -> None:
        place = self.host.get(block_hash)
        assert place is not None, block_hash
        assert self.disk is not None
        self._remove(self.disk.add(block_hash))
        place.pins += 1
        self._writing.add(block_hash)
        self._jobs.append(WriteFile(block_hash, place.slot, place.origin.adapter_digest))

    def _begin_to_read(self, block_hash: bytes, origin: Origin) -> bool:
        if len(self._reading) >= max(1, self.host.num_slots // 2):
            return False
        place = self._take_slot(block_hash, origin)
        if place is None:
            return False
        place.ready = False
        place.pins += 1
        self._reading.add(block_hash)
        self._jobs.append(ReadFile(block_hash, place.slot, origin.adapter_digest))
        return True

    def _written(self, job: WriteFile, outcome: Outcome) -> None:
        self._writing.remove(job.block_hash)
        self._unpin(job.block_hash)
        if job.block_hash in self._passing:
            self._discard(job.block_hash)
        if outcome == "done":
            self.counts.written += 1
        else:
            self._forget_file(job.block_hash)

    def _was_read(self, job: ReadFile, outcome: Outcome) -> None:
        self._reading.remove(job.block_hash)
        place = self._unpin(job.block_hash)
        if outcome == "done":
            self.counts.read += 1
            place.ready = place.from_disk = True
            return
        self.host.discard(job.block_hash)
        self._forget_file(job.block_hash)
        if outcome in self.counts.rejected:
            self.counts.rejected[outcome] += 1

    def _forget_file(self, block_hash: bytes) -> None:
        if self.disk is not None:
            self.disk.discard(block_hash)

    def _unpin(self, block_hash: bytes) -> HostBlock:
        place = self.host.get(block_hash)
        assert place is not None, block_hash
        place.pins -= 1
        return place

    def _give_up_writing(self) -> None:
        for block_hash in list(self._passing - self._writing):
            place = self.host.get(block_hash)
            if place is not None and not place.pins:
                self.host.discard(block_hash)
            self._passing.remove(block_hash)
        self._unwritten.clear()

    def _remove(self, names: Iterable[bytes | str]) -> None:
        self._jobs += [RemoveFile(name) for name in names]
