"""The engine without its front end: takes requests, advances all of them by one step at a time.

Synchronous and single-threaded; needs torch but no web stack, so that tests and benchmarks drive it directly.
"""

import random
import time
from collections.abc import Callable, Iterable

from kvasir_runtime.config import EngineConfig
from kvasir_runtime.contract.failures import Cause, FailureReport
from kvasir_runtime.core.block_hash import hash_root
from kvasir_runtime.core.kv_cache_manager import KVCacheManager
from kvasir_runtime.core.prefix_heat import PrefixHeat
from kvasir_runtime.core.scheduler import Scheduler, service_order
from kvasir_runtime.core.scheduler_output import SchedulerOutput
from kvasir_runtime.engine.adapters import EngineAdapters
from kvasir_runtime.engine.grammar_queue import GrammarQueue, failure
from kvasir_runtime.engine.kv_tiers import open_tiers
from kvasir_runtime.engine.messages import (
    AdapterLoaded,
    Answer,
    CacheReset,
    CacheSaved,
    Call,
    EngineOutput,
    EngineReady,
    EngineRequest,
    EngineStats,
    FinishReason,
    FromEngine,
    ListPrefixes,
    LoadAdapter,
    PrefixesListed,
    PrefixReport,
    ResetCache,
    SaveCache,
    SetSleep,
    SleepDone,
    StartupProgress,
    StepOutputs,
    TierStats,
)
from kvasir_runtime.request import Request, make_requests
from kvasir_runtime.structured.grammar import GrammarBackend
from kvasir_runtime.worker.host import cpu_count
from kvasir_runtime.worker.loader import LoadedEngine, load_engine
from kvasir_runtime.worker.model_runner import StepResult
from kvasir_runtime.worker.sleep import Sleeper

CHECK_INTERVAL_S = 10.0
"""An idle engine checks its books at most so often."""


class EngineCore:
    """One model on one device. `ready` says what was allocated."""

    def __init__(self, config: EngineConfig, on_progress: Callable[[StartupProgress], None] = lambda _: None) -> None:
        """Load the model. Raises KvasirError with the cause when that cannot be done."""
        loaded = load_engine(config, on_progress)
        self.ready: EngineReady = loaded.ready
        self._config = config
        self._runner = loaded.runner
        self._eos_token_ids = loaded.resolved.eos_token_ids
        heat = PrefixHeat(loaded.ready.block_size) if config.cache.prefix_caching else None
        self._tiers = open_tiers(config.cache, loaded)
        kv = KVCacheManager(
            loaded.ready.num_blocks,
            loaded.ready.block_size,
            config.cache.eviction_policy,
            heat,
            window=loaded.resolved.decoder.widest_window,
            step_tokens=config.scheduler.max_num_batched_tokens,
            tiers=None if self._tiers is None else self._tiers.books,
        )
        self._sleeper = Sleeper(loaded.runner, config, loaded.ready.model_digest)
        self._pins: dict[str, float] = {}
        self._adapters = self._make_adapters(loaded)
        self._scheduler = Scheduler(config.scheduler, kv, None if self._adapters is None else self._adapters.slots)
        self._blocked = False
        self._seeds = random.Random(config.seed)  # noqa: S311 - picks tokens, guards nothing
        self._grammars = GrammarQueue(self._grammar_backend().compile)
        self._num_requests = self._steps = 0
        self._prompt_tokens = self._generation_tokens = self._warmup_tokens = 0
        self._prompt_seconds = 0.0
        self._last_check, self._checked_steps = 0.0, 0

    def add_request(self, request: EngineRequest) -> None:
        """Queue a request. Raises ValueError, naming field, bound and value, for what can never run."""
        self._check(request)
        self._num_requests += 1
        group = make_requests(
            request,
            sort_key=service_order(
                self._config.scheduler,
                request.arrival_time,
                request.priority,
                self._num_requests,
                background=request.background,
            ),
            seed=self._seeds.getrandbits(64),
            max_model_len=self.ready.max_model_len,
            eos_token_ids=self._eos_token_ids,
            hash_root=self._hash_root(request),
        )
        if request.background:
            self._pins[request.request_id] = request.pin_s
        if request.sampling.constraint is None:
            self._scheduler.add(group)
        else:
            self._grammars.add(group, request.sampling.constraint)

    def abort_sequences(self, sequences: Iterable[tuple[str, int]]) -> None:
        """End single continuations (request id, index), whose blocks and seats are free at once; unknown ones none."""
        for request_id, index in sequences:
            self._scheduler.abort(request_id, index)

    def abort_requests(self, request_ids: Iterable[str]) -> None:
        """End requests, queued or running, without output. Ids that are not known (any more) are ignored."""
        for request_id in request_ids:
            self._scheduler.abort(request_id)
            self._grammars.abort(request_id)
            self._pins.pop(request_id, None)

    def call(self, call: Call) -> Answer:
        """Answer a question, or change what is in memory; raises KvasirError when the weights cannot be had back."""
        if isinstance(call, ListPrefixes):
            return PrefixesListed(call.call_id, self._hot_prefixes(call))
        if isinstance(call, SaveCache):
            return self._save_cache(call)
        if isinstance(call, ResetCache):
            return self._reset_cache(call)
        return self._set_sleep(call)

    def load_adapter(self, message: LoadAdapter) -> AdapterLoaded | None:
        """Register an adapter. The answer comes at once when it is known, else from `poll` when it was read."""
        if self._adapters is None:
            report = FailureReport(Cause.ADAPTER_INVALID, "adapters are off", "start with --enable-lora")
            return AdapterLoaded(message.digest, 0, report.to_json())
        return self._adapters.load(message)

    def unload_adapter(self, digest: str) -> None:
        """Take no more requests for an adapter; it is gone with its last one. Harmless for what is not there."""
        if self._adapters is not None:
            self._adapters.unload(digest)
        if self._scheduler.kv.heat is not None:
            self._scheduler.kv.heat.forget(digest)
        if self._tiers is not None:
            self._tiers.books.forget_adapter(digest)

    def poll(self) -> list[FromEngine]:
        """Go on with adapters and files; call it between steps. Returns what the front end must know."""
        if self._tiers is not None:
            self._tiers.poll()
            if not self.has_work() and not self._sleeper.level:
                self._tiers.save_when_idle(self._scheduler.kv, time.monotonic())
        if self._adapters is None:
            return []
        messages: list[FromEngine] = list(self._adapters.poll())
        for message in messages:
            if isinstance(message, AdapterLoaded) and message.report:
                self._blocked = False
                if ended := self._end_requests_of(message):
                    messages.append(StepOutputs(ended, self.stats()))
        return messages

    def is_waiting(self) -> bool:
        """Whether nothing can run before something was read; without work, whether anything is read or written."""
        reading = self._adapters is not None and self._adapters.is_reading
        if self._tiers is not None:
            reading = reading or self._tiers.is_reading or (not self.has_work() and self._tiers.is_saving)
        return reading and (self._blocked or not self.has_work())

    def wait(self, seconds: float) -> None:
        """Wait up to `seconds` for what is being read or written."""
        if self._tiers is not None and self._tiers.is_busy:
            self._tiers.wait(seconds)
        elif self._adapters is not None:
            self._adapters.wait(seconds)

    def check_when_idle(self, now: float) -> None:
        """Check the books where there is no work and there was some since they were checked last.

        That takes about 0.1 s for 100,000 blocks (1.6 million tokens), at most every `CHECK_INTERVAL_S`.
        Raises AssertionError.
        """
        if not self.has_work() and self._checked_steps != self._steps and now - self._last_check >= CHECK_INTERVAL_S:
            self._last_check, self._checked_steps = now, self._steps
            self.check_integrity()

    def has_work(self) -> bool:
        return self._scheduler.has_work() or bool(self._grammars)

    def step(self) -> StepOutputs:
        """Schedule, run, sample, update: every running sequence gets on. Without work it costs next to nothing."""
        refused = self._take_compiled()
        now = time.monotonic()
        if self._tiers is not None:
            self._tiers.step_begins()
        plan = self._scheduler.schedule(now)
        self._blocked = not plan.seats
        if not plan.seats:
            if self._tiers is not None:
                self._tiers.copy_now(plan.saves, plan.loads)
            return StepOutputs(refused, self.stats())
        admitted = self._newly_admitted(plan, now)
        result = self._runner.execute(plan)
        if self._tiers is not None:
            self._tiers.books.copied()
        self._keep_prompt_logprobs(result)
        self._steps += 1
        self._prompt_tokens += self._count_prompt_tokens(plan)
        if len(plan.seats) > plan.num_single and self._scheduler.users_present:
            self._prompt_seconds += time.monotonic() - now
        if not self._scheduler.users_present:
            self._warmup_tokens += self._count_warmup_tokens(plan)
        advanced = self._scheduler.update(plan, result.token_ids)
        self._generation_tokens += sum(not request.background for request in advanced)
        self._pin_finished(advanced, now)
        logprobs = result.logprobs or [None] * len(advanced)
        outputs = [
            EngineOutput(
                request_id=request.request_id,
                index=request.index,
                new_token_ids=[request.token_ids[-1]],
                finish_reason=request.finish_reason,
                stop_token_id=request.stop_token_id,
                logprobs=None if entry is None else [entry],
                prompt_logprobs=request.prompt_logprobs if request.num_output_tokens == 1 else None,
                cached_tokens=request.num_cached_tokens if request.num_output_tokens == 1 else None,
                tier_tokens=request.tier_tokens or None if request.num_output_tokens == 1 else None,
            )
            for request, entry in zip(advanced, logprobs, strict=True)
        ]
        for row, reason in result.failed.items():
            outputs[row] = self._give_up(advanced[row], reason)
        return StepOutputs(refused + outputs, self.stats(), admitted)

    def stats(self) -> EngineStats:
        scheduler, pool = self._scheduler, self._scheduler.kv.pool
        return EngineStats(
            running=scheduler.num_running,
            waiting=scheduler.num_waiting + self._grammars.num_waiting,
            queued_tokens=scheduler.queued_tokens,
            blocks_total=pool.num_usable,
            blocks_active=pool.num_active,
            blocks_cached=pool.num_cached_free,
            blocks_pinned=pool.num_pinned,
            prefix_query_tokens=scheduler.kv.query_tokens,
            prefix_hit_tokens=scheduler.kv.hit_tokens,
            preemptions=scheduler.preemptions,
            prompt_tokens=self._prompt_tokens,
            prompt_seconds=self._prompt_seconds,
            generation_tokens=self._generation_tokens,
            warmup_tokens=self._warmup_tokens,
            steps=self._steps,
            cache_value=scheduler.kv.value(time.monotonic()),
            tiers=TierStats() if self._tiers is None else self._tiers.stats(scheduler.kv),
        )

    def check_integrity(self) -> None:
        """Raise AssertionError when the books of queue, seats and blocks contradict each other."""
        self._scheduler.check_integrity()

    def _set_sleep(self, call: SetSleep) -> SleepDone:
        level, kv = self._sleeper.level, self._scheduler.kv
        if self.has_work():
            return SleepDone(call.call_id, level, error="requests still run")
        if self._tiers is not None and call.level > level and not self._tiers.fall_asleep(kv, call.level):
            return SleepDone(call.call_id, level, error="the disk tier of the KV cache does not answer")
        kv.pool.forget_cached()
        change = self._sleeper.set_level(call.level)
        return SleepDone(call.call_id, call.level, change.freed_bytes, change.resident_bytes, change.seconds)

    def _save_cache(self, call: SaveCache) -> CacheSaved:
        if self._tiers is None or self.has_work():
            return CacheSaved(call.call_id, 0, complete=self._tiers is None)
        before = self._tiers.books.counts.written
        complete = self._tiers.save_to_files(self._scheduler.kv, call.timeout_s)
        return CacheSaved(call.call_id, self._tiers.books.counts.written - before, complete)

    def _reset_cache(self, call: ResetCache) -> CacheReset:
        pool = self._scheduler.kv.pool
        blocks = {"device": pool.num_cached_free}
        pool.forget_cached()
        if self._tiers is not None:
            forgotten = self._tiers.reset(files=call.files)
            if forgotten is None:
                return CacheReset(call.call_id, blocks, error="the disk tier of the KV cache does not answer")
            blocks |= forgotten
        return CacheReset(call.call_id, blocks)

    def _check(self, request: EngineRequest) -> None:
        if self._sleeper.level:
            raise ValueError("the engine sleeps")
        if not self._scheduler.adapters.accepts(request.adapter_digest):
            msg = f"adapter {request.adapter!r} with digest {request.adapter_digest!r} is not loaded"
            raise ValueError(msg)
        vocab = self.ready.vocab_size
        for name, token_ids in (
            ("prompt token ids", request.prompt_token_ids),
            ("token ids of logit_bias", request.sampling.logit_bias),
            ("stop_token_ids", request.sampling.stop_token_ids),
        ):
            bad = next((token for token in token_ids if not 0 <= token < vocab), None)
            if bad is not None:
                msg = f"{name} must be between 0 and {vocab - 1}, got {bad}"
                raise ValueError(msg)
        if self._scheduler.knows(request.request_id) or request.request_id in self._grammars:
            msg = f"request_id {request.request_id!r} is in use"
            raise ValueError(msg)

    def _make_adapters(self, loaded: LoadedEngine) -> EngineAdapters | None:
        if self._config.adapters is None or loaded.runner.lora is None:
            return None
        resolved = loaded.resolved
        return EngineAdapters(self._config.adapters, loaded.runner.lora, resolved.shape, resolved.dtype)

    def _end_requests_of(self, failed: AdapterLoaded) -> list[EngineOutput]:
        """End those that wait for an adapter that can no longer be read."""
        report = FailureReport.from_json(failed.report)
        reason = "the adapter cannot be read" if report is None else report.message
        lost = [request for request in self._scheduler.unfinished() if request.adapter_digest == failed.digest]
        for request in lost:
            self._scheduler.finish(request, FinishReason.ERROR)
        return [EngineOutput(one.request_id, [], one.index, FinishReason.ERROR, error=reason) for one in lost]

    def _grammar_backend(self) -> GrammarBackend:
        threads = self._config.num_threads or cpu_count()
        return GrammarBackend(self._config.model, self.ready.vocab_size, sorted(self._eos_token_ids), threads)

    def _take_compiled(self) -> list[EngineOutput]:
        compiled, refused = self._grammars.take(may_wait=not self._scheduler.has_work())
        for group in compiled:
            self._scheduler.add(group)
        return refused

    def _give_up(self, request: Request, reason: str) -> EngineOutput:
        if request.finish_reason is None:
            self._scheduler.finish(request, FinishReason.ERROR)
        return failure(request, f"led to a state that is too complex to go on from: {reason}")

    def _hash_root(self, request: EngineRequest) -> bytes | None:
        """Continuations of one prompt share blocks even without a prefix cache: then nobody else can know the salt."""
        salt = request.cache_salt
        if not self._config.cache.prefix_caching:
            if request.sampling.n == 1:
                return None
            salt = f"{self._num_requests}\0{salt}"
        return hash_root(self.ready.model_digest, request.adapter_digest, salt)

    def _newly_admitted(self, plan: SchedulerOutput, now: float) -> dict[str, float]:
        seated = (self._scheduler.seated[seating.seat] for seating in plan.seatings)
        return {request.request_id: now for request in seated if request is not None and request.num_output_tokens == 0}

    def _count_prompt_tokens(self, plan: SchedulerOutput) -> int:
        count = 0
        for seating in plan.seatings:
            request = self._scheduler.seated[seating.seat]
            if request is not None and request.num_output_tokens == 0 and not request.background:
                count += request.num_prompt_tokens
        return count

    def _pin_finished(self, advanced: Iterable[Request], now: float) -> None:
        for request in advanced:
            pin_s = self._pins.pop(request.request_id, 0.0)
            if pin_s > 0:
                self._scheduler.kv.pin(request, now + pin_s)

    def _count_warmup_tokens(self, plan: SchedulerOutput) -> int:
        rows = (
            (self._scheduler.seated[seat], count) for seat, count in zip(plan.seats, plan.num_new_tokens, strict=True)
        )
        return sum(count for request, count in rows if request is not None and request.background)

    def _hot_prefixes(self, call: ListPrefixes) -> list[PrefixReport]:
        kv = self._scheduler.kv
        if kv.heat is None:
            return []
        found = kv.heat.hottest(call.count, call.max_tokens, time.monotonic(), salted=call.salted)
        return [
            PrefixReport(
                token_ids=list(prefix.token_ids),
                hits=round(prefix.hits, 3),
                cached_tokens=kv.block_size * kv.count_cached(prefix.block_hashes),
                adapter=prefix.origin.adapter,
                adapter_digest=prefix.origin.adapter_digest,
                cache_salt=prefix.origin.cache_salt,
            )
            for prefix in found
        ]

    def _keep_prompt_logprobs(self, result: StepResult) -> None:
        for seat, scored in result.prompt_logprobs.items():
            request = self._scheduler.seated[seat]
            assert request is not None, seat
            if request.prompt_logprobs is None:
                request.prompt_logprobs = [None] * request.num_prompt_tokens
            start = request.num_computed_tokens + 1
            request.prompt_logprobs[start : start + len(scored)] = scored
