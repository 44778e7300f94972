"""Whatever is added, aborted, warmed up, pinned and run in any order: no leak, no shared write, right output and hits.

What is warmed up or pinned never keeps a user's request from running. The same with tiers behind the device, whose
files are written and read at any time later, and may be gone, damaged or without room.
"""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvasir_runtime.config import SchedulerConfig
from kvasir_runtime.core.disk_tier import DiskTier
from kvasir_runtime.core.kv_cache_manager import KVCacheManager
from kvasir_runtime.core.kv_tiers import KVTiers, Outcome, ReadFile, RemoveFile, WriteFile
from kvasir_runtime.core.scheduler import Scheduler
from tests.kvasir_runtime.core.harness import Harness, content, expected_output

BLOCK_SIZE = 4
MAX_MODEL_LEN = 40

# Few different beginnings, so that prefixes are often shared.
prompts = st.builds(
    lambda family, common, tail: [family] * common + tail,
    st.integers(0, 2), st.integers(1, 20), st.lists(st.integers(0, 2), max_size=8),
)  # fmt: skip


class SchedulerMachine(RuleBasedStateMachine):
    """`Harness.step` itself checks that no slot is overwritten or read wrongly."""

    @initialize(
        num_blocks=st.integers(MAX_MODEL_LEN // BLOCK_SIZE + 1, 30),
        policy=st.sampled_from(["fcfs", "priority"]),
        eviction=st.sampled_from(["lru", "lfu"]),
        prefer_prefill=st.booleans(),
        max_num_seqs=st.integers(1, 6),
        budget=st.integers(1, 24),
        window=st.sampled_from([None, None, 1, 5, 8, 9, 14]),
    )
    def start(
        self,
        num_blocks: int,
        policy: Any,
        eviction: Any,
        prefer_prefill: bool,
        max_num_seqs: int,
        budget: int,
        window: int | None,
    ) -> None:
        tiers = self.make_tiers()
        kv = KVCacheManager(num_blocks, BLOCK_SIZE, eviction, window=window, step_tokens=budget, tiers=tiers)
        config = SchedulerConfig(max_num_seqs, budget, policy, prefer_prefill)
        self.harness = Harness(Scheduler(config, kv), MAX_MODEL_LEN)
        self.expected: dict[str, list[int]] = {}
        self.aborted: set[str] = set()

    def make_tiers(self) -> KVTiers | None:
        return None

    @rule(prompt=prompts, max_tokens=st.integers(1, 10), n=st.integers(1, 3), priority=st.integers(-1, 1))
    def add(self, prompt: list[int], max_tokens: int, n: int, priority: int) -> None:
        name = str(len(self.expected))
        self.harness.add(name, prompt, max_tokens, n=n, priority=priority, arrival=float(len(self.expected)))
        self.expected[name] = expected_output(prompt, max_tokens)

    @rule(prompt=prompts)
    def warm_up(self, prompt: list[int]) -> None:
        name = str(len(self.expected))
        self.harness.add(name, prompt, max_tokens=1, background=True)
        self.expected[name] = expected_output(prompt, 1)

    @rule(data=st.data(), seconds=st.integers(0, 30))
    def pin(self, data: st.DataObject, seconds: int) -> None:
        if self.harness.finished:
            request = self.harness.finished[data.draw(st.sampled_from(sorted(self.harness.finished)))]
            kv = self.harness.scheduler.kv
            kv.pin(request, self.harness.now + seconds)
            assert kv.pool.num_pinned <= kv.pool.num_usable // 2

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        if self.expected:
            name = data.draw(st.sampled_from(sorted(self.expected)))
            if self.harness.scheduler.abort(name):
                self.aborted.add(name)

    @rule(data=st.data(), index=st.integers(0, 2))
    def abort_one(self, data: st.DataObject, index: int) -> None:
        if self.expected:
            name = data.draw(st.sampled_from(sorted(self.expected)))
            self.harness.scheduler.abort(name, index)
            if not self.harness.scheduler.knows(name):
                self.aborted.add(name)

    @rule(count=st.integers(1, 6))
    def step(self, count: int) -> None:
        for _ in range(count):
            scheduler = self.harness.scheduler
            users = scheduler.users_present
            head, evictions = scheduler._head(), scheduler.kv.pool.evictions
            longest = longest_cached(self.harness, head) if head is not None else 0
            output, _ = self.harness.step()
            rows = [scheduler.seated[seat] for seat in output.seats]
            reading = scheduler.kv.tiers is not None and scheduler.kv.tiers.is_reading_any
            assert not users or rows or reading, "a user's request waits for what is in the background"
            assert not users or not any(request and request.background for request in rows)
            if scheduler.kv.pool.evictions == evictions:  # else what was cached may have been taken for others
                hits = [s.num_computed_tokens for s in output.seatings if head and s.token_ids is head.token_ids]
                assert hits in ([], [longest])

    @rule()
    def drain(self) -> None:
        self.harness.run()
        assert self.harness.scheduler.kv.pool.num_active == 0

    @invariant()
    def books_are_right(self) -> None:
        if not hasattr(self, "harness"):
            return
        self.harness.scheduler.check_integrity()
        for (name, _), request in self.harness.finished.items():
            assert list(request.token_ids[request.num_prompt_tokens :]) == self.expected[name]

    def teardown(self) -> None:
        if not hasattr(self, "harness"):
            return
        self.harness.run()
        done = {name for name, _ in self.harness.finished}
        assert done | self.aborted == set(self.expected)
        self.harness.scheduler.check_integrity()


def longest_cached(harness: Harness, request: Any) -> int:
    """The longest run of full blocks of `request` whose content lies in a findable block, by looking at memory."""
    pool = harness.scheduler.kv.pool
    contents: set[bytes | None] = set()
    for block in range(1, pool.num_blocks):
        if pool.hash_of(block) is not None:
            contents.add(harness.written[block * BLOCK_SIZE + BLOCK_SIZE - 1])
    tiers = harness.scheduler.kv.tiers
    if tiers is not None:
        contents |= {harness.host[place.slot][-1] for _, place in tiers.host.items() if place.ready}
    window = harness.scheduler.kv.window
    there = [
        content(request, length + BLOCK_SIZE) in contents
        for length in range(0, request.num_tokens - BLOCK_SIZE, BLOCK_SIZE)
    ]
    for blocks in range(len(there), 0, -1):
        first = 0 if window is None else max(0, blocks * BLOCK_SIZE + 1 - window) // BLOCK_SIZE
        if all(there[first:blocks]):
            return blocks * BLOCK_SIZE
    return 0


SchedulerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestScheduler = SchedulerMachine.TestCase


class TieredMachine(SchedulerMachine):
    """The same rules, with host memory of a few blocks and files that a slow and unreliable thread handles."""

    host_slots = 6
    disk_files = 5

    def make_tiers(self) -> KVTiers:
        self.files: dict[bytes, list[bytes | None]] = {}
        self.salted_hashes: set[bytes] = set()
        self.readers: list[ReadFile] = []
        self.writers: list[WriteFile | RemoveFile] = []
        return KVTiers(self.host_slots, DiskTier(self.disk_files * 10 + 5, 10))

    @property
    def tiers(self) -> KVTiers:
        tiers = self.harness.scheduler.kv.tiers
        assert tiers is not None
        return tiers

    @rule(prompt=prompts)
    def add_salted(self, prompt: list[int]) -> None:
        name = str(len(self.expected))
        (request,) = self.harness.add(name, prompt, 1, salt="tenant", arrival=float(len(self.expected)))
        self.expected[name] = expected_output(prompt, 1)
        self.salted_hashes.update(self.harness.scheduler.kv._usable_hashes(request))

    @rule(
        count=st.integers(1, 4), reads_first=st.booleans(), damaged=st.sampled_from([None, None, "corrupt", "foreign"])
    )
    def work(self, count: int, reads_first: bool, damaged: Outcome | None) -> None:
        """Two threads, one for reading, get on with their jobs."""
        self.hand_out()
        for _ in range(count):
            if self.readers and (reads_first or not self.writers):
                self.read(damaged)
            elif self.writers:
                self.write()

    @rule(full=st.booleans(), chance=st.integers(0, 20))
    def break_down(self, full: bool, chance: int) -> None:
        self.hand_out()
        if chance == 0 and self.writers:
            job = self.writers.pop(0)
            self.tiers.finished(job, "full" if full and isinstance(job, WriteFile) else "failed")

    @rule()
    def save_while_idle(self) -> None:
        scheduler = self.harness.scheduler
        if not scheduler.has_work():
            scheduler.kv.save_unwritten()
            self.harness.copy()

    @rule(everything=st.booleans())
    def sleep(self, everything: bool) -> None:
        scheduler = self.harness.scheduler
        if scheduler.has_work():
            return
        scheduler.kv.save_all()
        self.harness.copy()
        scheduler.kv.pool.forget_cached()
        self.harness.written.clear()
        if everything:
            self.tiers.forget_host()

    @rule()
    def reset(self) -> None:
        self.finish_jobs()
        self.tiers.forget_host()
        self.tiers.forget_disk()
        self.finish_jobs()
        assert not self.files or self.tiers.disk_state != "on"
        assert len(self.tiers.host) == 0

    @invariant()
    def tiers_are_right(self) -> None:
        if not hasattr(self, "harness"):
            return
        self.tiers.check_integrity()
        assert not self.salted_hashes & self.files.keys(), "what was salted is on disk"

    def finish_jobs(self) -> None:
        while self.tiers.has_jobs or self.readers or self.writers:
            self.work(1, reads_first=True, damaged=None)

    def hand_out(self) -> None:
        for job in self.tiers.take_jobs():
            if isinstance(job, ReadFile):
                self.readers.append(job)
            else:
                self.writers.append(job)

    def read(self, damaged: Outcome | None) -> None:
        job = self.readers.pop(0)
        content = self.files.get(job.block_hash)
        if content is not None and damaged is None:
            self.harness.host[job.slot] = content
        self.tiers.finished(job, "missing" if content is None else damaged or "done")

    def write(self) -> None:
        job = self.writers.pop(0)
        if isinstance(job, WriteFile):
            self.files[job.block_hash] = self.harness.host[job.slot]
        elif isinstance(job.name, bytes):
            self.files.pop(job.name, None)
        assert len(self.files) <= self.disk_files + 1
        self.tiers.finished(job, "done")


TieredMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
TestTiers = TieredMachine.TestCase
