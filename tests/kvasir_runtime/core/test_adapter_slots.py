"""Who holds a slot, who is in memory, who goes next; and how requests wait for it."""

import pytest

from kvasir_runtime.config import SchedulerConfig
from kvasir_runtime.core.adapter_slots import NO_SLOT, AdapterSlots
from kvasir_runtime.core.kv_cache_manager import KVCacheManager
from kvasir_runtime.core.scheduler import MAX_OVERTAKERS, Scheduler, service_order
from kvasir_runtime.engine.messages import EngineRequest
from kvasir_runtime.request import Request, make_requests
from kvasir_runtime.sampling_params import SamplingParams


def book(num_slots: int = 2, num_resident: int = 3, loaded: str = "", pinned: str = "") -> AdapterSlots:
    """A book with one-letter adapters in memory."""
    slots = AdapterSlots(num_slots, num_resident)
    for digest in loaded:
        assert slots.register(digest, pinned=digest in pinned)
        assert slots.next_load() == digest
        assert slots.loaded(digest)
    return slots


def use(slots: AdapterSlots, digest: str) -> int:
    """One sequence comes, is seated and is done."""
    slots.sequence_added(digest)
    assert slots.can_seat(digest)
    slot = slots.seat(digest)
    slots.unseat(digest)
    slots.sequence_finished(digest)
    slots.check_integrity()
    return slot


def test_the_base_model_needs_no_slot() -> None:
    """Not even a book with places."""
    slots = AdapterSlots()
    slots.sequence_added("")
    assert slots.accepts("")
    assert slots.can_seat("")
    assert slots.seat("") == NO_SLOT
    assert not slots.accepts("a")


def test_slots_go_to_the_least_recently_used() -> None:
    """Two slots, three adapters: the one used longest ago gives way, and the runner is told."""
    slots = book(loaded="abc")
    assert (use(slots, "a"), use(slots, "b"), use(slots, "a")) == (0, 1, 0)
    assert use(slots, "c") == 1
    assert slots.take_activations() == [(0, "a"), (1, "c")]
    assert slots.take_activations() == []
    assert dict(slots.states()) == {"a": "device", "b": "host", "c": "device"}


def test_a_seated_or_pinned_adapter_keeps_its_slot() -> None:
    """With both slots taken for good nobody else can be seated."""
    slots = book(loaded="abc", pinned="a")
    assert dict(slots.states())["a"] == "device"
    slots.sequence_added("b")
    assert slots.can_seat("b")
    slots.seat("b")
    slots.sequence_added("c")
    assert not slots.can_seat("c")
    assert slots.could_take_a_slot("c")
    slots.unseat("b")
    assert slots.can_seat("c")
    assert slots.seat("c") == 1


def test_memory_is_left_by_the_least_recently_used() -> None:
    """A fourth adapter pushes out the one used longest ago, which is read again when it is asked for."""
    slots = book(loaded="abc")
    for digest in "bca":
        use(slots, digest)
    slots.register("d", pinned=False)
    assert slots.next_load() == "d"
    assert slots.take_dropped() == ["b"]
    slots.loaded("d")
    assert dict(slots.states())["b"] == "disk"
    slots.sequence_added("b")
    slots.start_round()
    assert not slots.can_seat("b")
    assert not slots.could_take_a_slot("b")
    assert slots.next_load() == "b"
    assert slots.take_dropped() == ["c"]
    slots.loaded("b")
    assert slots.can_seat("b")


def test_what_was_brought_in_for_the_head_stays_until_it_was_used() -> None:
    """An adapter that is claimed is not thrown out; without room the next one waits."""
    slots = book(num_slots=1, num_resident=1, loaded="a")
    for digest in "bc":
        slots.register(digest, pinned=False)
        slots.sequence_added(digest)
    slots.sequence_added("a")
    slots.start_round()
    assert slots.can_seat("a")
    assert not slots.can_seat("b")
    assert slots.next_load() is None
    slots.start_round()
    assert not slots.can_seat("b")
    assert slots.next_load() == "b"


def test_a_retired_adapter_goes_with_its_last_sequence() -> None:
    """No new ones; what runs goes on; then its slot and its memory are free, and nothing remembers it."""
    slots = book(loaded="a")
    slots.sequence_added("a")
    assert slots.can_seat("a")
    slots.seat("a")
    slots.retire("a")
    assert not slots.accepts("a")
    assert slots.take_dropped() == []
    slots.unseat("a")
    slots.sequence_finished("a")
    assert slots.take_dropped() == ["a"]
    assert list(slots.states()) == []
    assert slots.take_activations() == []


def test_a_retired_adapter_can_be_wanted_again() -> None:
    """While its last requests run it need not be read again."""
    slots = book(loaded="a")
    slots.sequence_added("a")
    slots.retire("a")
    assert not slots.register("a", pinned=False)
    slots.sequence_finished("a")
    assert dict(slots.states()) == {"a": "host"}


@pytest.mark.parametrize("outcome", ["loaded", "failed"])
def test_retired_while_it_is_read(outcome: str) -> None:
    """It is gone as soon as the reading ends."""
    slots = AdapterSlots(1, 1)
    slots.register("a", pinned=False)
    assert slots.next_load() == "a"
    slots.retire("a")
    assert dict(slots.states()) == {"a": "loading"}
    if outcome == "loaded":
        assert not slots.loaded("a")
    else:
        slots.failed("a")
    assert list(slots.states()) == []


class Line:
    """A scheduler with adapters in memory; requests are of 1 prompt token and run for a given number of steps."""

    def __init__(self, adapters: AdapterSlots, num_seats: int = 200) -> None:
        kv = KVCacheManager(1000, 4)
        self.scheduler = Scheduler(SchedulerConfig(num_seats, 256), kv, adapters)
        self.count = 0

    def add(self, digest: str, steps: int) -> Request:
        self.count += 1
        message = EngineRequest(
            str(self.count), [1], SamplingParams(max_tokens=steps, ignore_eos=True), 0.0, adapter_digest=digest
        )
        (request,) = make_requests(
            message,
            sort_key=service_order(self.scheduler.config, 0.0, 0, self.count),
            seed=0,
            max_model_len=1000,
            eos_token_ids=frozenset(),
            hash_root=None,
        )
        self.scheduler.add([request])
        return request

    def step(self) -> set[str]:
        """The adapters that were computed."""
        output = self.scheduler.schedule(0.0)
        seated = [self.scheduler.seated[seat] for seat in output.seats]
        self.scheduler.update(output, [7] * sum(output.samples))
        self.scheduler.check_integrity()
        return {request.adapter_digest for request in seated if request is not None}


def test_others_pass_a_request_that_waits_for_a_slot() -> None:
    """With one slot taken, the base model and the same adapter go on; the other adapter runs when the slot is free."""
    line = Line(book(num_slots=1, loaded="ab"))
    line.add("a", 3)
    assert line.step() == {"a"}
    waiting = line.add("b", 1)
    line.add("", 1)
    line.add("a", 1)
    assert line.step() == {"a", ""}
    assert (waiting.times_passed, line.step(), line.step()) == (2, {"a"}, {"b"})


def test_nobody_is_passed_for_ever() -> None:
    """However many requests for the other adapter keep coming, a bounded number passes."""
    line = Line(book(num_slots=1, loaded="ab"))
    line.add("a", 2)
    line.step()
    waiting = line.add("b", 1)
    steps = 0
    while waiting.finish_reason is None:
        line.add("a", 3)
        line.step()
        steps += 1
        assert steps < MAX_OVERTAKERS + 10
    assert waiting.times_passed == MAX_OVERTAKERS
