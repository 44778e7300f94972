"""The model of one replica: an engine's steps with continuous batching, chunked prefill and a prefix cache.

A step takes `step_s + prefill_s x (prompt tokens in it) + decode_s x (sequences that decode) + kv_s x (KV tokens that
they read)`. Decodes come first, prompts fill the rest of the step's budget. Steps that only decode are taken together
up to the next arrival or end of a sequence, and `wakes_at` says until when a replica need not be looked at, so that an
hour of traffic costs seconds.

What it leaves out: blocks (tokens are counted one by one), prefixes shared by sequences that run at the same time, and
the growth of a prompt token's cost with its position.
"""

import heapq
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Final

from kvasir_operator.scaling.samples import Sample
from kvasir_operator.scaling.simulator.traces import HASHED_TOKENS, Request

RATE_S: Final = 10.0
"""Window of the engine's own rates."""
RESERVED_TOKENS: Final = 16
"""A sequence that runs may need another block at once: newcomers leave it that."""
TTFT_S: Final = 60.0
"""Window of the engine's own latencies."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What a replica is made of: seconds, tokens and sequences."""

    step_s: float
    prefill_s: float
    decode_s: float
    kv_s: float
    kv_tokens: int
    max_seqs: int = 256
    max_batched_tokens: int = 2048
    cold_start_s: float = 90.0


@dataclass(slots=True, eq=False)
class Sequence:
    """A request on its way. `pending` prompt tokens are still to be computed, `done` output tokens are out."""

    request: Request
    pending: int
    context: int
    done: int = 0
    first_token_at: float | None = None
    preempted: bool = False


@dataclass(slots=True, eq=False)
class Replica:
    """One replica. `now` is the end of its last step; `advance` brings it on."""

    name: str
    profile: Profile
    created_at: float
    ready_at: float
    draining_since: float | None = None
    now: float = 0.0
    wakes_at: float = 0.0
    waiting: deque[Sequence] = field(default_factory=deque)
    waiting_tokens: int = 0
    prefilling: deque[Sequence] = field(default_factory=deque)
    kv_active: int = 0
    cache: OrderedDict[int, None] = field(default_factory=OrderedDict)
    hits: int = 0
    queries: int = 0
    finished: int = 0
    preemptions: int = 0
    _clock: int = 0
    _ends: list[tuple[int, int, Sequence]] = field(default_factory=list)
    _order: int = 0
    _decoding: OrderedDict[int, tuple[Sequence, int]] = field(default_factory=OrderedDict)
    _prompts: deque[tuple[float, int]] = field(default_factory=deque)
    _firsts: deque[tuple[float, float]] = field(default_factory=deque)
    _busy: deque[tuple[float, float]] = field(default_factory=deque)

    def add(self, request: Request) -> Sequence:
        """Queue a request that arrives now; the caller has advanced the replica to its arrival."""
        sequence = Sequence(request, pending=request.prompt, context=request.prompt)
        self.waiting.append(sequence)
        self.waiting_tokens += request.prompt
        self.wakes_at = self.now
        return sequence

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.prefilling or self._decoding)

    @property
    def running(self) -> int:
        return len(self.prefilling) + len(self._decoding)

    @property
    def load(self) -> int:
        """Tokens that it holds or is still to compute, for the router."""
        return self.kv_active + self.waiting_tokens

    def cached_tokens(self, request: Request) -> int:
        """Prompt tokens of the request that its cache holds."""
        count = 0
        for block in request.blocks:
            if block not in self.cache:
                break
            count += 1
        return min(count * HASHED_TOKENS, request.prompt - 1)

    def advance(self, until: float) -> None:
        """Step until `until`; the last step may end later. Before `wakes_at` none begins, ends or is preempted."""
        while self.now < until:
            if self.idle:
                self.now = until
                break
            if self.waiting:
                self._admit()
            if self.prefilling:
                self._step()
            else:
                self._decode(until)
        self.wakes_at = self._next_event()

    def sample(self, at: float) -> Sample:
        """What the engine would say of itself."""
        while self._prompts and self._prompts[0][0] < at - RATE_S:
            self._prompts.popleft()
        while self._busy and self._busy[0][0] < at - RATE_S:
            self._busy.popleft()
        while self._firsts and self._firsts[0][0] < at - TTFT_S:
            self._firsts.popleft()
        firsts = sorted(ttft for _, ttft in self._firsts)
        return Sample(
            boot=self.name,
            kv_capacity=self.profile.kv_tokens,
            kv_active=self.kv_active,
            queued_tokens=self.waiting_tokens,
            waiting=len(self.waiting),
            prompt_per_s=sum(tokens for _, tokens in self._prompts) / RATE_S,
            prompt_busy=min(1.0, sum(seconds for _, seconds in self._busy) / RATE_S),
            hits=self.hits,
            queries=self.queries,
            ttft_p95_s=firsts[min(len(firsts) - 1, int(0.95 * len(firsts)))] if firsts else None,
            cold_start_s=self.ready_at - self.created_at,
        )

    def _admit(self) -> None:
        """Seat waiting sequences in their order while there are seats and KV tokens for their contexts."""
        profile = self.profile
        while self.waiting and self.running < profile.max_seqs:
            sequence = self.waiting[0]
            reserve = RESERVED_TOKENS * self.running
            if self.running and self.kv_active + sequence.context + reserve > profile.kv_tokens:
                return
            self.waiting.popleft()
            self.waiting_tokens -= sequence.request.prompt
            self._seat(sequence)

    def _seat(self, sequence: Sequence) -> None:
        request = sequence.request
        cached = self.cached_tokens(request)
        if not sequence.preempted:
            self.hits += cached
            self.queries += request.prompt
            self._prompts.append((self.now, request.prompt))
        sequence.pending = sequence.context - cached
        self.kv_active += sequence.context
        self.prefilling.append(sequence)

    def _step(self) -> None:
        """One step with prompts in it."""
        profile = self.profile
        budget = max(1, profile.max_batched_tokens - len(self._decoding))
        complete: list[Sequence] = []
        computed = 0
        while self.prefilling and budget > 0:
            sequence = self.prefilling[0]
            chunk = min(budget, sequence.pending)
            sequence.pending -= chunk
            budget -= chunk
            computed += chunk
            if sequence.pending == 0:
                complete.append(self.prefilling.popleft())
        duration = self._step_s() + profile.prefill_s * computed
        self.now += duration
        self._busy.append((self.now, duration))
        self._emit(1)
        for sequence in complete:
            self._begin_decode(sequence)

    def _decode(self, until: float) -> None:
        """Steps without prompts: to the next end of a sequence, or past `until`."""
        steps = self._steps_alone()
        if steps < 1:
            self._preempt()
            return
        if until < float("inf"):
            steps = min(steps, max(1, int((until - self.now) / self._step_s()) + 1))
        self.now += self._seconds_of(steps)
        self._emit(steps)

    def _steps_alone(self) -> int:
        """Decode steps until a sequence ends or the KV cache is full; 0 where it is. One sequence alone always fits."""
        self._drop_stale_ends()
        steps, count = self._ends[0][0] - self._clock, len(self._decoding)
        return steps if count == 1 else min(steps, (self.profile.kv_tokens - self.kv_active) // count)

    def _seconds_of(self, steps: int) -> float:
        """Of so many steps without prompts: each reads one KV token more of every sequence than the one before."""
        return steps * self._step_s() + self.profile.kv_s * len(self._decoding) * steps * (steps - 1) / 2

    def _next_event(self) -> float:
        if self.waiting or self.prefilling:
            return self.now
        return self.now + self._seconds_of(max(0, self._steps_alone())) if self._decoding else float("inf")

    def _step_s(self) -> float:
        profile, decoding = self.profile, len(self._decoding)
        reading = profile.kv_s * self.kv_active if decoding else 0.0
        return profile.step_s + profile.decode_s * decoding + reading

    def _emit(self, steps: int) -> None:
        """Every decoding sequence gets a token a step; those that have all of theirs end."""
        self._clock += steps
        self.kv_active += steps * len(self._decoding)
        while self._ends and self._ends[0][0] <= self._clock:
            _, order, sequence = heapq.heappop(self._ends)
            if self._decoding.get(order, (None, 0))[0] is sequence:
                del self._decoding[order]
                self._leave(sequence)

    def _begin_decode(self, sequence: Sequence) -> None:
        """The prompt is computed, and its first token out."""
        if sequence.first_token_at is None:
            sequence.first_token_at = self.now
            self._firsts.append((self.now, self.now - sequence.request.arrival))
            sequence.done = 1
            self.kv_active += 1
            sequence.context += 1
        self._remember(sequence.request)
        left = sequence.request.output - sequence.done
        if left <= 0:
            self._leave(sequence)
            return
        self._order += 1
        self._decoding[self._order] = (sequence, self._clock)
        heapq.heappush(self._ends, (self._clock + left, self._order, sequence))

    def _leave(self, sequence: Sequence) -> None:
        self.kv_active -= sequence.request.prompt + sequence.request.output
        self.finished += 1

    def _preempt(self) -> None:
        """The KV cache is full: the last to have begun gives its place up, and computes its context anew later."""
        _, (sequence, since) = self._decoding.popitem()
        made = self._clock - since
        sequence.done += made
        self.kv_active -= sequence.context + made
        sequence.context += made
        sequence.preempted = True
        self.waiting.appendleft(sequence)
        self.waiting_tokens += sequence.request.prompt
        self.preemptions += 1

    def _drop_stale_ends(self) -> None:
        """Ends of sequences that were preempted since."""
        while self._decoding.get(self._ends[0][1], (None, 0))[0] is not self._ends[0][2]:
            heapq.heappop(self._ends)

    def _remember(self, request: Request) -> None:
        for block in request.blocks:
            self.cache[block] = None
            self.cache.move_to_end(block)
        while len(self.cache) * HASHED_TOKENS > self.profile.kv_tokens:
            self.cache.popitem(last=False)
