"""What is scheduled when, with exact tokens, blocks and order."""

import sys
from collections.abc import Callable

import pytest

from kvasir_runtime.core.scheduler import BACKGROUND_CHUNK, Scheduler
from kvasir_runtime.engine.messages import FinishReason
from tests.kvasir_runtime.core.harness import expected_output, make_harness


def tokens(start: int, count: int) -> list[int]:
    return list(range(start, start + count))


def test_a_long_prompt_is_computed_in_chunks_beside_decodes() -> None:
    """Decodes come first; the prompt takes what the budget leaves; exact blocks are taken as needed."""
    harness = make_harness(max_num_batched_tokens=8)
    (short,) = harness.add("short", tokens(0, 3), max_tokens=8)
    (long,) = harness.add("long", tokens(100, 18), max_tokens=2)
    first, _ = harness.step()
    assert (first.num_new_tokens, first.samples, first.num_single) == ([3, 5], [True, False], 0)
    assert (short.block_ids, long.block_ids) == ([1], [2, 3])
    second, _ = harness.step()
    assert (second.num_new_tokens, second.num_computed_tokens, second.num_single) == ([1, 7], [3, 5], 1)
    third, _ = harness.step()
    assert (third.num_new_tokens, third.samples) == ([1, 6], [True, True])
    harness.run()
    assert harness.output_of("short") == expected_output(tokens(0, 3), 8)
    assert harness.output_of("long") == expected_output(tokens(100, 18), 2)


def test_prefer_prefill_takes_turns() -> None:
    """With `prefer_prefill` prompts take the budget first, but decodes are not left out twice in a row."""
    harness = make_harness(max_num_batched_tokens=4, prefer_prefill=True)
    (decode,) = harness.add("decode", tokens(0, 2), max_tokens=10)
    harness.step()
    harness.add("prompt", tokens(50, 20), max_tokens=1)
    produced = []
    for _ in range(4):
        harness.step()
        produced.append(decode.num_output_tokens)
    assert produced == [1, 2, 2, 3]


def test_a_cached_prefix_is_shared_and_not_computed() -> None:
    """A second request takes the full blocks of the common prefix, and never its whole prompt."""
    harness = make_harness()
    (first,) = harness.add("first", tokens(0, 8), max_tokens=6)
    harness.step()
    (second,) = harness.add("second", tokens(0, 8), max_tokens=1)
    (third,) = harness.add("third", [*tokens(0, 8), 77], max_tokens=1)
    output, _ = harness.step()
    # 8 prompt tokens fill blocks 1 and 2; `second` must compute its last token, so that it can use only block 1.
    assert (second.num_cached_tokens, third.num_cached_tokens) == (4, 8)
    assert output.num_new_tokens == [1, 1, 4]
    assert first.block_ids[:2] == [1, 2]
    assert harness.scheduler.kv.hit_tokens == 12
    harness.run()
    assert harness.scheduler.kv.pool.num_active == 0


def test_continuations_share_the_prompts_blocks() -> None:
    """N = 3: two followers wait for the prompt, then refer to its full blocks and compute its tail alone."""
    harness = make_harness(max_num_batched_tokens=64)
    leader, *followers = harness.add("many", tokens(0, 10), max_tokens=6, n=3)
    assert harness.scheduler.num_waiting == 3
    harness.step()
    assert harness.scheduler.num_waiting == 2
    output, _ = harness.step()
    assert output.num_new_tokens == [1, 2, 2]
    assert [request.block_ids for request in (leader, *followers)] == [[1, 2, 3], [1, 2, 4], [1, 2, 5]]
    assert list(harness.scheduler.kv.pool.ref_counts)[:6] == [1, 3, 3, 1, 1, 1]
    harness.run()
    assert len(harness.finished) == 3
    harness.scheduler.check_integrity()


def test_blocks_behind_the_window_are_given_back() -> None:
    """With a window of 9 a sequence holds the blocks of its last 8 tokens and of the next; the others stay findable."""
    harness = make_harness(window=9, max_num_batched_tokens=8)
    (first,) = harness.add("first", tokens(0, 24), max_tokens=12)
    held = []
    while harness.scheduler.has_work():
        harness.step()
        held.append(sum(block != 0 for block in first.block_ids))
        harness.scheduler.check_integrity()
    assert max(held) == 3  # the 8 tokens before the next lie in three blocks at most
    assert harness.output_of("first") == expected_output(tokens(0, 24), 12)
    (second,) = harness.add("second", [*tokens(0, 24), 7], max_tokens=3)
    harness.step()
    assert (second.num_cached_tokens, second.block_ids[:4], len(second.block_ids)) == (24, [0, 0, 0, 0], 7)
    harness.run()
    assert harness.output_of("second") == expected_output([*tokens(0, 24), 7], 3)


def test_a_prefix_behind_the_window_need_not_be_cached() -> None:
    """Blocks that were evicted in front do no harm; one that is missing within the window shortens the hit."""
    harness = make_harness(window=9, max_num_batched_tokens=64)
    harness.add("first", tokens(0, 33), max_tokens=1)
    harness.run()
    (request,) = harness.add("again", tokens(0, 33), max_tokens=1)
    pool, kv = harness.scheduler.kv.pool, harness.scheduler.kv
    assert len(kv.find_cached(request)) == 8
    hashes = list(request.block_hashes)
    for gone, expected in ((0, 8), (5, 8), (6, 5), (1, 5), (3, 0)):
        block = pool.find(hashes[gone])
        assert block is not None
        pool._forget(block)
        pool.num_cached_free -= 1
        found = kv.find_cached(request)
        assert len(found) == expected, gone
        assert [pool.hash_of(block) for block in found if block] == hashes[
            len(found) - sum(map(bool, found)) : len(found)
        ]


def test_long_prompts_need_blocks_for_window_and_step_alone() -> None:
    """Three prompts of 48 tokens run side by side in 16 blocks, where without a window only one would fit."""
    for window, running in ((9, 3), (None, 1)):
        harness = make_harness(num_blocks=17, window=window, max_num_batched_tokens=8, max_model_len=64)
        for number in range(3):
            harness.add(str(number), tokens(100 * number, 48), max_tokens=16)
        most = 0
        while harness.scheduler.has_work():
            harness.step()
            most = max(most, len(harness.scheduler.running))
            harness.scheduler.check_integrity()
        assert most == running
        for number in range(3):
            assert harness.output_of(str(number)) == expected_output(tokens(100 * number, 48), 16)


def test_the_last_in_order_is_preempted_and_its_output_is_unchanged() -> None:
    """Without a free block the youngest gives way, keeps its place, is computed again and says the same."""
    harness = make_harness(num_blocks=9, max_model_len=32)  # 8 usable blocks of 4
    (old,) = harness.add("old", tokens(0, 12), max_tokens=14)
    (young,) = harness.add("young", tokens(100, 8), max_tokens=10)
    (late,) = harness.add("late", tokens(200, 4), max_tokens=2)
    seen = []
    while harness.scheduler.has_work():
        harness.step()
        harness.scheduler.check_integrity()
        seen.append((len(old.block_ids), len(young.block_ids), len(late.block_ids)))
    assert harness.scheduler.preemptions > 0
    for name, prompt, count in (("old", tokens(0, 12), 14), ("young", tokens(100, 8), 10), ("late", tokens(200, 4), 2)):
        assert harness.output_of(name) == expected_output(prompt, count)
    assert next(iter(harness.finished))[0] != "young", seen


def test_priority_takes_the_seat_of_the_last_running() -> None:
    """Under `priority` a more urgent request preempts; under `fcfs` it waits."""
    for policy, running in (("priority", "urgent"), ("fcfs", "normal")):
        harness = make_harness(policy=policy, max_num_seqs=1)
        harness.add("normal", tokens(0, 4), max_tokens=8, priority=5, arrival=10.0)
        harness.step()
        harness.add("urgent", tokens(50, 4), max_tokens=8, priority=0, arrival=11.0)
        harness.step()
        assert [request.request_id for request in harness.scheduler.running] == [running]
        harness.run()
        assert harness.output_of("normal") == expected_output(tokens(0, 4), 8)


def test_low_priority_ages() -> None:
    """A request of priority 1 is overtaken for a minute and no longer."""
    harness = make_harness(policy="priority", max_num_seqs=1)
    harness.add("running", tokens(0, 4), max_tokens=2)
    harness.step()
    harness.add("low", tokens(10, 4), max_tokens=1, priority=1, arrival=100.0)
    harness.add("soon", tokens(20, 4), max_tokens=1, priority=0, arrival=159.0)
    harness.add("later", tokens(30, 4), max_tokens=1, priority=0, arrival=161.0)
    harness.run()
    assert [name for name, _ in harness.finished] == ["running", "soon", "low", "later"]


@pytest.mark.parametrize("when", ["queued", "running", "follower"])
def test_abort_frees_everything(when: str) -> None:
    """An aborted request leaves no block, seat or count behind, wherever it was."""
    harness = make_harness(max_num_seqs=2)
    harness.add("other", tokens(0, 4), max_tokens=30)
    harness.add("gone", tokens(50, 9), max_tokens=30, n=2)
    for _ in range({"queued": 0, "running": 3, "follower": 1}[when]):
        harness.step()
    aborted = harness.scheduler.abort("gone")
    assert [request.finish_reason for request in aborted] == [FinishReason.ABORT] * 2
    assert harness.scheduler.abort("gone") == []
    harness.scheduler.check_integrity()
    harness.run()
    assert harness.scheduler.kv.pool.num_active == 0
    assert (harness.scheduler.num_waiting, harness.scheduler.queued_tokens) == (0, 0)


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_one_continuation_is_ended_and_its_siblings_go_on(index: int, steps: int) -> None:
    """Its blocks and its seat are free at once, also when the others still wait for its prompt."""
    harness = make_harness(max_num_seqs=4, max_num_batched_tokens=8)
    harness.add("many", tokens(0, 12), max_tokens=8, n=3)
    for _ in range(steps):
        harness.step()
    held = harness.scheduler.kv.pool.num_active
    (ended,) = harness.scheduler.abort("many", index)
    assert (ended.index, ended.finish_reason, ended.block_ids, ended.seat) == (index, FinishReason.ABORT, [], -1)
    assert harness.scheduler.abort("many", index) == []
    assert harness.scheduler.kv.pool.num_active < held or steps < 2
    harness.scheduler.check_integrity()
    harness.run()
    assert sorted(number for _, number in harness.finished) == [number for number in range(3) if number != index]
    for number in {0, 1, 2} - {index}:
        assert harness.output_of("many", number) == expected_output(tokens(0, 12), 8)
    assert (harness.scheduler.kv.pool.num_active, harness.scheduler.num_waiting) == (0, 0)


def test_aborted_requests_are_not_kept() -> None:
    """Clients that come and go while the queue does not move leave nothing behind."""
    harness = make_harness(max_num_seqs=1)
    harness.add("running", tokens(0, 4), max_tokens=50)
    harness.step()
    for number in range(1000):
        harness.add(str(number), tokens(0, 8))
        harness.scheduler.abort(str(number))
    assert len(harness.scheduler._waiting) < 100
    harness.add("last", tokens(0, 4), max_tokens=1)
    harness.run()
    assert list(harness.finished) == [("running", 0), ("last", 0)]


@pytest.mark.parametrize("prefer_prefill", [False, True])
@pytest.mark.parametrize("eviction", ["lru", "lfu"])
def test_nobody_waits_longer_than_the_bound(prefer_prefill: bool, eviction: str) -> None:
    """A request is done within as many steps as it and those before it have tokens, whatever arrives later."""
    harness = make_harness(
        num_blocks=17, max_model_len=48, max_num_seqs=4, max_num_batched_tokens=4, prefer_prefill=prefer_prefill,
        eviction=eviction,
    )  # fmt: skip
    bound, work = {}, 0
    for number in range(12):
        prompt, output = 3 + number * 7 % 20, 1 + number * 5 % 12
        harness.add(str(number), tokens(1000 * number, prompt), max_tokens=output)
        work += prompt + output
        bound[str(number)] = work * (2 if prefer_prefill else 1)
    steps = 0
    while any((name, 0) not in harness.finished for name in bound):
        harness.add(f"newcomer {steps}", tokens(50_000 + 20 * steps, 12), max_tokens=6)
        harness.step()
        steps += 1
        late = [name for name, limit in bound.items() if limit < steps and (name, 0) not in harness.finished]
        assert not late, f"{late} are not done after {steps} steps"


@pytest.mark.parametrize("prefer_prefill", [False, True])
@pytest.mark.parametrize("num_blocks", [17, 40])
def test_low_priorities_wait_no_longer_than_the_bound(prefer_prefill: bool, num_blocks: int) -> None:
    """Under `priority`, with urgent requests that never cease and with preemptions.

    Only requests that come before it in the order of service can keep a request back: no more of these come once it is
    older than the difference in priority x `AGING_S`. From when it is the first, it and those that run then have so
    many tokens as it may take steps.
    """
    harness = make_harness(
        num_blocks=num_blocks, max_model_len=48, max_num_seqs=4, max_num_batched_tokens=4, policy="priority",
        prefer_prefill=prefer_prefill,
    )  # fmt: skip
    watched = {}
    for number, priority in enumerate((2, 0, 1, 1, 2)):
        prompt, output = 5 + 6 * number, 12 - 2 * number
        (watched[f"low {number}"],) = harness.add(
            f"low {number}", tokens(1000 * number, prompt), max_tokens=output, priority=priority
        )
    for _ in range(6):
        harness.step()  # some have begun when the urgent ones come
    bound: dict[str, int] = {}
    steps = 0
    while any((name, 0) not in harness.finished for name in watched):
        urgent = f"urgent {steps}"
        harness.add(urgent, tokens(50_000 + 20 * steps, 5), max_tokens=3, priority=-1, arrival=harness.now)
        unfinished = {request.request_id: request for request in harness.scheduler.unfinished()}
        first = min(unfinished.values(), key=lambda request: request.sort_key)
        if first.request_id in watched and first.request_id not in bound:
            involved = {first, *harness.scheduler.running}
            work = sum(request.num_prompt_tokens + request.max_output_tokens for request in involved)
            bound[first.request_id] = steps + work * (2 if prefer_prefill else 1)
        harness.step()
        steps += 1
        late = [name for name, limit in bound.items() if limit < steps and (name, 0) not in harness.finished]
        assert not late, f"{late} are not done after {steps} steps"
        # Nobody ahead of it comes when it is older than 3 priorities x 60 s.
        ahead = [name for name, request in unfinished.items() if request.sort_key < watched["low 0"].sort_key]
        assert steps <= 180 or f"urgent {steps - 1}" not in ahead
    assert harness.scheduler.preemptions > 0 or num_blocks == 40
    for name, request in watched.items():
        asked = list(request.token_ids[: request.num_prompt_tokens])
        assert harness.output_of(name) == expected_output(asked, request.max_output_tokens)


def count_operations(work: Callable[[], object]) -> int:
    """Calls of functions, Python's and C's, that `work` makes."""
    count = 0

    def tick(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(tick)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_a_step_makes_no_more_calls_when_the_queue_is_long(policy: str) -> None:
    """1,000 and 10,000 waiting requests add less than 5 % to the calls of scheduling and updating a step."""
    calls = {}
    for queued in (0, 1_000, 10_000):
        harness = make_harness(num_blocks=200, max_num_seqs=4, max_num_batched_tokens=16, policy=policy)
        for number in range(4):
            harness.add(str(number), tokens(100 * number, 12), max_tokens=50)
        while any(request.num_output_tokens < 2 for request in harness.scheduler.running) or harness.now == 0:
            harness.step()
        for number in range(queued):
            harness.add(f"w{number}", tokens(5_000, 8), arrival=harness.now)
        scheduler = harness.scheduler

        def one_step(scheduler: Scheduler = scheduler) -> None:
            output = scheduler.schedule(100.0)
            scheduler.update(output, [1] * len(output.seats))

        one_step()  # the head of the queue is looked at once
        calls[queued] = sum(count_operations(one_step) for _ in range(5))
    assert calls[1_000] < 1.05 * calls[0] + 5 * 12  # the head is asked again whether it fits
    assert calls[10_000] == calls[1_000]


def test_a_step_costs_no_more_when_the_queue_is_long() -> None:
    """Scheduling looks at the head of the queue only: 10,000 waiting requests are not touched."""
    harness = make_harness(max_num_seqs=2)
    harness.add("a", tokens(0, 4), max_tokens=50)
    harness.add("b", tokens(9, 4), max_tokens=50)
    harness.step()
    waiting = [harness.add(f"w{number}", tokens(100, 8))[0] for number in range(10_000)]
    for _ in range(20):
        harness.step()
    touched = [request for request in waiting if request.block_hashes]
    assert len(touched) <= 1


def test_background_prompts_are_computed_in_chunks_while_nobody_else_wants_the_engine() -> None:
    """Beside users' work nothing of them is computed; they count neither as waiting nor as running."""
    harness = make_harness(num_blocks=200, max_model_len=700, max_num_batched_tokens=600)
    (warm,) = harness.add("warm", tokens(0, 600), max_tokens=1, background=True)
    scheduler = harness.scheduler
    assert (scheduler.num_waiting, scheduler.queued_tokens, scheduler.has_work()) == (0, 0, True)
    assert harness.step()[0].num_new_tokens == [BACKGROUND_CHUNK]
    harness.add("user", tokens(900, 8), max_tokens=3)
    assert scheduler.num_waiting == 1
    for new in ([8], [1], [1]):
        assert harness.step()[0].num_new_tokens == new
        assert scheduler.num_running == len(scheduler.running) - 1
    assert harness.step()[0].num_new_tokens == [BACKGROUND_CHUNK]
    assert harness.step()[0].num_new_tokens == [600 - 2 * BACKGROUND_CHUNK]
    assert warm.finish_reason is FinishReason.LENGTH
    assert scheduler.kv.query_tokens == 8, "the cache's hit rate is that of users"


@pytest.mark.parametrize("seats", [1, 8])
def test_a_background_prompt_makes_way_for_users(seats: int) -> None:
    """It gives up its only seat, or its blocks, at once, keeps its place, and is computed later."""
    harness = make_harness(num_blocks=11, max_num_seqs=seats, max_num_batched_tokens=16)
    (warm,) = harness.add("warm", tokens(0, 30), max_tokens=1, background=True)
    harness.step()
    assert len(warm.block_ids) == 4
    harness.add("user", tokens(100, 26), max_tokens=8)
    output, _ = harness.step()
    assert (output.num_new_tokens, warm.block_ids) == ([16], [])
    assert harness.scheduler.preemptions == 0
    harness.run()
    assert harness.output_of("user") == expected_output(tokens(100, 26), 8)
    assert harness.output_of("warm") == expected_output(tokens(0, 30), 1)


def test_pinned_blocks_never_keep_a_request_waiting() -> None:
    """Half of the blocks are pinned; a request that needs them all still runs at once and takes them."""
    harness = make_harness(num_blocks=11, max_num_batched_tokens=40)
    (warm,) = harness.add("warm", tokens(0, 32), max_tokens=1, background=True)
    harness.run()
    pool = harness.scheduler.kv.pool
    harness.scheduler.kv.pin(warm, until=1e9)
    assert pool.num_pinned == 5
    harness.add("small", tokens(500, 16), max_tokens=1)
    harness.run()
    assert pool.num_pinned == 5
    harness.add("again", tokens(0, 21), max_tokens=1)
    output, _ = harness.step()
    assert output.num_computed_tokens == [20], "what is pinned is found"
    harness.add("large", tokens(600, 37), max_tokens=2)
    output, _ = harness.step()
    assert output.num_new_tokens == [37]
    assert pool.num_pinned == 0
    harness.run()
    harness.scheduler.check_integrity()


def test_with_a_window_only_what_will_be_seen_is_pinned() -> None:
    """Of a warmed prompt of 32 tokens with a window of 9, the two blocks that the next token sees."""
    harness = make_harness(window=9, max_num_batched_tokens=64)
    (warm,) = harness.add("warm", tokens(0, 32), max_tokens=1, background=True)
    harness.run()
    kv = harness.scheduler.kv
    kv.pin(warm, until=1e9)
    assert kv.pool.num_pinned == 2
    assert kv.count_cached(warm.block_hashes[:8]) == 8
    harness.scheduler.check_integrity()
