"""Exact orders, jobs and counts of the tiers behind the device, one rule at a time."""

import pytest

from kvasir_runtime.core.disk_tier import DiskTier
from kvasir_runtime.core.kv_tiers import MAX_WRITES, KVTiers, ReadFile, RemoveFile, WriteFile
from kvasir_runtime.core.prefix_heat import Origin

BASE, SALTED, ADAPTER = Origin(), Origin(cache_salt="tenant"), Origin("sql", "d1")
A, B, C, D = (bytes([number]) * 16 for number in range(4))


def make_tiers(slots: int = 2, files: int = 4, *, writes_salted: bool = False) -> KVTiers:
    return KVTiers(slots, DiskTier(files * 10, 10), writes_salted=writes_salted)


def carry_out(tiers: KVTiers) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    orders = tiers.take_orders()
    tiers.copied()
    return orders


def evict(tiers: KVTiers, *contents: bytes, origin: Origin = BASE) -> None:
    for block, content in enumerate(contents, start=1):
        tiers.evicted(block, content, origin)
    carry_out(tiers)


def written(tiers: KVTiers) -> list[bytes]:
    """Let the thread write all there is; returns what."""
    done = []
    for job in tiers.take_jobs():
        tiers.finished(job, "done")
        done += [job.block_hash] if isinstance(job, WriteFile) else []
    return done


def test_evicted_blocks_take_slots_and_the_least_recently_used_leaves() -> None:
    """Orders name block and slot; content that is there already is not copied again, but used last."""
    tiers = KVTiers(2)
    tiers.evicted(5, A, BASE)
    tiers.evicted(6, B, BASE)
    assert carry_out(tiers) == ([(5, 0), (6, 1)], [])
    tiers.evicted(7, A, BASE)
    tiers.evicted(8, C, BASE)
    assert carry_out(tiers) == ([(8, 1)], [])
    assert [tiers.holds(content) for content in (A, B, C)] == [True, False, True]
    assert (tiers.counts.saved, tiers.counts.dropped) == (3, 0)


def test_what_a_step_loads_stays_and_what_has_no_room_is_dropped() -> None:
    """Held slots are pinned until the copies are done; a save that finds all pinned is given up, and counted."""
    tiers = KVTiers(2)
    evict(tiers, A, B)
    tiers.hold([A, B])
    assert [tiers.load(A, 8), tiers.load(B, 9)] == ["host", "host"]
    tiers.evicted(3, C, BASE)
    assert tiers.counts.dropped == 1
    assert carry_out(tiers) == ([], [(0, 8), (1, 9)])
    tiers.check_integrity()
    tiers.evicted(3, C, BASE)
    assert tiers.holds(A), "the beginning of a prompt outlives its end"
    assert not tiers.holds(B)


def test_a_block_that_is_loaded_twice_gets_what_was_ordered_last() -> None:
    """As when the request that it was loaded for is preempted in the same step."""
    tiers = KVTiers(2)
    evict(tiers, A, B)
    tiers.hold([A, B])
    tiers.load(A, 8)
    tiers.load(B, 8)
    assert carry_out(tiers) == ([], [(1, 8)])


def test_evicted_blocks_are_written_and_read_back() -> None:
    """Files are written of what was evicted, the oldest make room; what is read is a hit from disk once."""
    tiers = make_tiers(slots=4, files=2)
    evict(tiers, A, B, C)
    jobs = tiers.take_jobs()
    assert jobs == [WriteFile(A, 0, ""), WriteFile(B, 1, ""), RemoveFile(A), WriteFile(C, 2, "")]
    for job in jobs:
        tiers.finished(job, "done")
    tiers.forget_host()
    assert [tiers.may_have(content) for content in (A, B, C)] == [False, True, True]
    assert tiers.read_ahead([B, C], BASE) == [B, C]
    assert not tiers.holds(B)
    for job in tiers.take_jobs():
        assert isinstance(job, ReadFile)
        tiers.finished(job, "done")
    for expected in ("disk", "host"):
        tiers.hold([B])
        assert tiers.load(B, 1) == expected
        carry_out(tiers)
    tiers.check_integrity()


@pytest.mark.parametrize("outcome", ["missing", "corrupt", "foreign"])
def test_a_file_that_cannot_be_used_is_counted_and_forgotten(outcome: str) -> None:
    """The slot is free again, and the file is not looked for once more."""
    tiers = make_tiers()
    evict(tiers, A)
    written(tiers)
    tiers.forget_host()
    tiers.read_ahead([A], BASE)
    (job,) = tiers.take_jobs()
    tiers.finished(job, outcome)  # type: ignore[arg-type]
    assert tiers.counts.rejected[outcome] == 1
    assert not tiers.may_have(A)
    assert len(tiers.host) == 0
    tiers.check_integrity()


@pytest.mark.parametrize(("outcome", "readable"), [("full", True), ("failed", False)])
def test_a_volume_without_room_or_sense_ends_writing_alone(outcome: str, readable: bool) -> None:
    """A full one is still read, a failing one not; host memory goes on in both cases."""
    tiers = make_tiers(slots=4)
    evict(tiers, A)
    written(tiers)
    tiers.forget_host()
    evict(tiers, B, C)
    first, second = tiers.take_jobs()
    tiers.finished(first, outcome)  # type: ignore[arg-type]
    tiers.finished(second, outcome)  # type: ignore[arg-type]
    assert tiers.disk_state == outcome
    assert tiers.may_have(A) is readable
    evict(tiers, D)
    assert tiers.take_jobs() == []
    assert tiers.holds(B)
    tiers.check_integrity()


def test_salted_blocks_are_written_only_where_that_is_allowed() -> None:
    """A tenant's prompts stay in memory."""
    for allowed in (False, True):
        tiers = make_tiers(writes_salted=allowed)
        evict(tiers, A, origin=SALTED)
        tiers.hit(7, B, SALTED)
        carry_out(tiers)
        assert written(tiers) == ([B, A] if allowed else [])


def test_hits_pass_through_host_memory_to_a_file() -> None:
    """A block that was hit on the device gets a file, its slot is free afterwards; no more of them than may be."""
    tiers = make_tiers(slots=64, files=64)
    blocks = [bytes([number]) * 16 for number in range(MAX_WRITES + 4)]
    for number, content in enumerate(blocks):
        tiers.hit(number, content, BASE)
    saves, _ = carry_out(tiers)
    assert len(saves) == MAX_WRITES
    assert sorted(written(tiers)) == sorted(blocks[:MAX_WRITES])
    assert len(tiers.host) == 0
    tiers.hit(0, blocks[0], BASE)
    assert carry_out(tiers) == ([], []), "it has a file"
    tiers.check_integrity()


def test_what_is_evicted_while_it_passes_stays_in_host_memory() -> None:
    """It is no copy of the device's any more."""
    tiers = make_tiers(slots=4)
    tiers.hit(7, A, BASE)
    tiers.evicted(7, A, BASE)
    assert carry_out(tiers) == ([(7, 0)], [])
    assert written(tiers) == [A]
    assert tiers.holds(A)


def test_an_unloaded_adapter_gives_back_host_memory() -> None:
    """Its own blocks alone."""
    tiers = KVTiers(4)
    evict(tiers, A, B, origin=ADAPTER)
    evict(tiers, C)
    tiers.forget_adapter("d1")
    assert [tiers.holds(content) for content in (A, B, C)] == [False, False, True]
    tiers.check_integrity()


def test_reading_ahead_takes_half_of_the_host_memory() -> None:
    """A long prompt does not push out everything else; what is there already is not read."""
    tiers = make_tiers(slots=4, files=8)
    evict(tiers, A, B, C, D)
    written(tiers)
    tiers.forget_host()
    assert tiers.read_ahead([A, B, C, D], BASE) == [A, B]
    for job in tiers.take_jobs():
        tiers.finished(job, "done")
    assert tiers.read_ahead([A, B, C, D], BASE) == [C, D]
    assert tiers.read_ahead([A, B, C, D], BASE) == [C, D], "they are awaited by another request too"
    assert len(tiers.take_jobs()) == 2


def test_others_files_count_and_go_first() -> None:
    """What other models left takes room of the same volume; what is too much at the start goes at once."""
    disk = DiskTier(45, 10)
    assert disk.restore([A, B], [("old", 7), ("older", 20)]) == ["old"]
    assert (len(disk), disk.used) == (2, 40)
    assert disk.add(C) == ["older"]
    assert disk.add(D) == []
    assert disk.add(bytes(16)[:15] + b"x") == [A]
    disk.check_integrity()
