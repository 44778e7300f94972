"""Decides each step which sequences compute how many tokens. Torch-free; time is an argument.

One rule: every running sequence wants to bring `num_computed_tokens` up to `num_tokens`. Rules of a step:

- The step has a budget of `max_num_batched_tokens`. Decodes (one token missing) come first, then prompts under way,
  then new requests, so that a long prompt is computed in chunks beside the decodes. `prefer_prefill` puts decodes last.
- A request is admitted when a seat is free and all its blocks fit beside one more block for each that runs; where every
  layer has a window, those of a window and a step are enough.
- A request with an adapter needs a slot for it, and the adapter in memory (`core/adapter_slots.py`). While it waits
  for these, others that need no other slot may pass it, but no more than `MAX_OVERTAKERS` in all.
- A request whose prefix goes on in files waits until that is read, 2 s at most; others may pass it as above.
- When a running sequence finds no block, the last in the order of service is preempted: its blocks are given back
  (their content stays findable), it waits in its old place and is computed again. Nothing new is admitted that step.
- A background request (a prompt computed beforehand) is only run while no other request waits or runs, a chunk of
  `BACKGROUND_CHUNK` tokens a step, and gives up its seat and its blocks to whoever wants them. It counts nowhere.
- Under `priority` a request of higher priority also takes the seat or the blocks of the last one running.

Order of service: as queued; under `priority`, a request of priority p counts as arrived p x `AGING_S` later (lower
runs first), so low priorities wait but never for ever.

Bound on waiting: the first in the order of service is never preempted and gets at least one token in each step
(no more than `max_num_batched_tokens` sequences are seated, so decodes leave it one token; with `prefer_prefill`
decodes and prompts take turns, which doubles the bound). So under `fcfs` a request is finished after at most as many
steps as it and those queued before it (and those that passed it while it waited for a slot or a file) have prompt
and output tokens, whatever arrives later. Under `priority` those that were running when it became the first count too.
"""

import math
from bisect import insort
from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from typing import Final

from kvasir_runtime.config import SchedulerConfig
from kvasir_runtime.core.adapter_slots import AdapterSlots
from kvasir_runtime.core.kv_cache_manager import KVCacheManager
from kvasir_runtime.core.scheduler_output import SchedulerOutput, Seating, TableGrowth
from kvasir_runtime.engine.messages import FinishReason
from kvasir_runtime.request import Request, Status

MAX_OVERTAKERS: Final = 64
"""How many later requests may pass one that waits for its adapter's slot; nobody passes it after that."""

_Entry = tuple[tuple[float, int], int, Request]

AGING_S: Final = 60.0
"""How much later a request counts as arrived for each step of priority."""

BACKGROUND_CHUNK: Final = 256
"""Tokens of a background prompt in one step: what a user's request that arrives meanwhile waits for at most."""


def service_order(
    config: SchedulerConfig, arrival_time: float, priority: int, number: int, *, background: bool = False
) -> tuple[float, int]:
    """A request's `sort_key`; `number` counts requests and settles ties."""
    if background:
        return (math.inf, number)
    return (arrival_time + priority * AGING_S if config.policy == "priority" else 0.0, number)


class Scheduler:
    """Owns the queue and the seats; not thread-safe."""

    def __init__(self, config: SchedulerConfig, kv: KVCacheManager, adapters: AdapterSlots | None = None) -> None:
        self.config: Final = config
        self.kv: Final = kv
        self.adapters: Final = adapters or AdapterSlots()
        self.running: list[Request] = []  # in order of service
        self.seated: list[Request | None] = [None] * min(config.max_num_seqs, config.max_num_batched_tokens)
        self.num_waiting = 0
        self.queued_tokens = 0
        self.preemptions = 0
        self._waiting: list[_Entry] = []  # a heap; the finished are dropped lazily
        self._free_seats = list(range(len(self.seated)))[::-1]
        self._groups: dict[str, list[Request]] = {}
        self._step: dict[Request, int] = {}
        self._budget = 0
        self._preempted_this_step = False
        self._decodes_waited = False

    def add(self, group: Sequence[Request]) -> None:
        """Queue the continuations of one prompt. The others follow when the first has computed the prompt."""
        leader = group[0]
        assert leader.request_id not in self._groups, leader.request_id
        self._groups[leader.request_id] = list(group)
        leader.followers = list(group[1:])
        for request in group:
            self.adapters.sequence_added(request.adapter_digest)
        self._enqueue(leader)
        for follower in leader.followers:
            self._count_waiting(follower, 1)

    def abort(self, request_id: str, index: int | None = None) -> list[Request]:
        """End the unfinished continuations of a request, or one of them, queued or running; returns them.

        Unknown ids give none. Those that wait for an aborted one's prompt are queued by themselves.
        """
        aborted = [request for request in self._groups.get(request_id, ()) if index in (None, request.index)]
        for request in aborted:
            self.finish(request, FinishReason.ABORT)
        for request in aborted:
            self._release_followers(request)
        if len(self._waiting) > 2 * self.num_waiting + 64:  # most entries are of requests that were aborted
            self._waiting = [entry for entry in self._waiting if entry[2].status is Status.WAITING]
            heapify(self._waiting)
        return aborted

    def has_work(self) -> bool:
        return bool(self._groups)

    @property
    def users_present(self) -> bool:
        """Whether any request runs or waits that is not in the background."""
        return self.num_waiting > 0 or (bool(self.running) and not self.running[0].background)

    @property
    def num_running(self) -> int:
        """Sequences that run, without those in the background."""
        return sum(not request.background for request in self.running)

    def knows(self, request_id: str) -> bool:
        """Whether a request of that id is unfinished."""
        return request_id in self._groups

    def unfinished(self) -> Iterator[Request]:
        for group in self._groups.values():
            yield from group

    def schedule(self, now: float) -> SchedulerOutput:
        """Choose the tokens of the next step and take the blocks for them; `update` must follow with the results.

        The copies that `output` orders must be carried out even where no row is scheduled, and `kv.tiers` be told.
        """
        self.kv.pool.unpin_expired(now)
        self._step.clear()
        self._budget = self.config.max_num_batched_tokens
        self._preempted_this_step = False
        output = SchedulerOutput()
        prefill_first = self.config.prefer_prefill and not self._decodes_waited
        if not prefill_first:
            self._schedule_running(decodes=True)
        self._schedule_running(decodes=False)
        self._admit(output, now)
        if prefill_first:
            self._schedule_running(decodes=True)
        self._decodes_waited = prefill_first and len(self._step) < len(self.running)
        if self.kv.tiers is not None:
            output.saves, output.loads = self.kv.tiers.take_orders()
        self._fill(output)
        return output

    def update(self, output: SchedulerOutput, sampled: Iterable[int]) -> list[Request]:
        """Take in a step's results: `sampled` has one token for each row that samples. Returns those rows' requests.

        Requests that are done carry `finish_reason`; their blocks and seats are free again.
        """
        tokens = iter(sampled)
        advanced: list[Request] = []
        for row, seat in enumerate(output.seats):
            request = self.seated[seat]
            assert request is not None, seat
            request.num_computed_tokens += output.num_new_tokens[row]
            self.kv.register_computed(request)
            self.kv.release_unseen(request)
            if not output.samples[row]:
                continue
            request.append(next(tokens))
            advanced.append(request)
            self._release_followers(request)
            if request.finish_reason is not None:
                self.finish(request, request.finish_reason)
        return advanced

    def finish(self, request: Request, reason: FinishReason) -> None:
        """Take a request out, wherever it is."""
        self._unqueue_or_unseat(request)
        self.adapters.sequence_finished(request.adapter_digest)
        request.status, request.finish_reason = Status.FINISHED, reason
        group = self._groups[request.request_id]
        group.remove(request)
        if not group:
            del self._groups[request.request_id]

    def check_integrity(self) -> None:
        """Raise AssertionError when queue, seats and blocks contradict each other."""
        unfinished = list(self.unfinished())
        self.kv.check_integrity(unfinished)
        self.adapters.check_integrity()
        assert self.running == sorted(self.running, key=_sort_key), "running is out of order"
        seated = [request for request in self.seated if request is not None]
        assert sorted(seated, key=_sort_key) == self.running, "seats and running differ"
        assert len(seated) + len(self._free_seats) == len(self.seated), "a seat is lost"
        waiting = [request for request in unfinished if request.status is Status.WAITING]
        users = [request for request in waiting if not request.background]
        assert len(waiting) == len(unfinished) - len(self.running), "a request neither waits nor runs"
        assert self.num_waiting == len(users), "the queue's count is wrong"
        assert self.queued_tokens == sum(request.num_tokens for request in users), "the queue's tokens are wrong"
        assert not any(request.block_ids for request in waiting), "a waiting request holds blocks"

    def _schedule_running(self, *, decodes: bool) -> None:
        for request in tuple(self.running):
            if self._budget == 0 or (request.background and self.users_present):
                return
            if request.status is Status.RUNNING and (request.num_pending_tokens == 1) is decodes:
                self._schedule_tokens(request)

    def _schedule_tokens(self, request: Request) -> None:
        count = min(request.num_pending_tokens, self._budget, BACKGROUND_CHUNK if request.background else self._budget)
        while not self.kv.allocate(request, count):
            victim = self.running[-1]
            self._preempt(victim)
            if victim is request:
                return
        self._step[request] = count
        self._budget -= count

    def _admit(self, output: SchedulerOutput, now: float) -> None:
        passed: list[_Entry] = []  # wait for an adapter's slot, or for blocks in files
        if self._budget > 0:
            self.adapters.start_round()
        while self._budget > 0 and not self._preempted_this_step and (request := self._head()) is not None:
            if request.background and self.users_present:
                break
            if not self._adapter_is_ready(request) or not self.kv.is_ready(request, now):
                if len(passed) == MAX_OVERTAKERS or request.times_passed == MAX_OVERTAKERS:
                    break
                passed.append(heappop(self._waiting))
                continue
            cached = self._make_room(request)
            if cached is None:
                break
            heappop(self._waiting)
            self._seat(request, cached, now, output)
            self._schedule_tokens(request)
            for _, _, other in passed:
                other.times_passed += 1
            if any(other.times_passed == MAX_OVERTAKERS for _, _, other in passed):
                break
        for entry in passed:
            heappush(self._waiting, entry)

    def _adapter_is_ready(self, request: Request) -> bool:
        """Whether the request's adapter has a slot or can have one; only who runs in the background gives one up."""
        digest = request.adapter_digest
        while not self.adapters.can_seat(digest):
            in_the_way = bool(self.running) and self.running[-1].background and not request.background
            if not in_the_way or not self.adapters.could_take_a_slot(digest):
                return False
            self._preempt(self.running[-1])
        return True

    def _make_room(self, request: Request) -> list[int] | None:
        """Find a seat and blocks for `request`; its cached blocks, or None when there is no room."""
        cached = self.kv.find_cached(request)
        while not self._free_seats or not self.kv.can_admit(request, cached, len(self.running)):
            if not self._yields_to(request):
                return None
            self._preempt(self.running[-1])
            cached = self.kv.find_cached(request)
        return cached

    def _yields_to(self, request: Request) -> bool:
        """Whether the last one running must make way for `request`."""
        if not self.running:
            return False
        last = self.running[-1]
        if last.background or self.config.policy != "priority":
            return last.background and not request.background
        return request.priority < last.priority and request.sort_key < last.sort_key

    def _seat(self, request: Request, cached: list[int], now: float, output: SchedulerOutput) -> None:
        self._count_waiting(request, -1)
        self.kv.admit(request, cached, now)
        request.status, request.seat = Status.RUNNING, self._free_seats.pop()
        request.num_sent_blocks = 0
        self.seated[request.seat] = request
        insort(self.running, request, key=_sort_key)
        output.seatings.append(
            Seating(
                request.seat,
                request.token_ids,
                request.num_prompt_tokens,
                request.num_computed_tokens,
                request.sampling,
                request.seed,
                request.stop_token_ids,
                request.grammar,
                self.adapters.seat(request.adapter_digest),
            )
        )

    def _preempt(self, request: Request) -> None:
        self.preemptions += not request.background
        self._preempted_this_step = True
        self._budget += self._step.pop(request, 0)
        self._unqueue_or_unseat(request)
        self._enqueue(request)

    def _unqueue_or_unseat(self, request: Request) -> None:
        if request.status is Status.RUNNING:
            self.kv.free(request)
            self.adapters.unseat(request.adapter_digest)
            self.running.remove(request)
            self.seated[request.seat] = None
            self._free_seats.append(request.seat)
            request.seat = -1
        elif request.status is Status.WAITING:
            self._count_waiting(request, -1)

    def _enqueue(self, request: Request) -> None:
        request.status = Status.WAITING
        self._count_waiting(request, 1)
        heappush(self._waiting, (request.sort_key, request.index, request))

    def _count_waiting(self, request: Request, change: int) -> None:
        if not request.background:
            self.num_waiting += change
            self.queued_tokens += change * request.num_tokens

    def _head(self) -> Request | None:
        while self._waiting and self._waiting[0][2].status is not Status.WAITING:
            heappop(self._waiting)
        return self._waiting[0][2] if self._waiting else None

    def _release_followers(self, leader: Request) -> None:
        for follower in leader.followers:
            if follower.status is Status.WAITING:
                heappush(self._waiting, (follower.sort_key, follower.index, follower))
        leader.followers = []

    def _fill(self, output: SchedulerOutput) -> None:
        if self._step:
            output.activations = self.adapters.take_activations()
        rows = sorted(self._step.items(), key=lambda item: item[1] > 1)
        for request, count in rows:
            output.seats.append(request.seat)
            output.num_new_tokens.append(count)
            output.num_computed_tokens.append(request.num_computed_tokens)
            output.samples.append(count == request.num_pending_tokens)
            output.num_single += count == 1
            if len(request.block_ids) > request.num_sent_blocks:
                fresh = request.block_ids[request.num_sent_blocks :]
                output.growths.append(TableGrowth(request.seat, request.num_sent_blocks, fresh))
                request.num_sent_blocks = len(request.block_ids)


def _sort_key(request: Request) -> tuple[tuple[float, int], int]:
    return request.sort_key, request.index
