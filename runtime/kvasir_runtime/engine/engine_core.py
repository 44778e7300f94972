"""The engine without its front end: takes requests, advances all of them by one step at a time.

Synchronous and single-threaded; needs torch but no web stack, so that tests and benchmarks drive it directly.
"""

import random
import time
from collections.abc import Callable, Iterable

from kvasir_runtime.config import EngineConfig
from kvasir_runtime.core.block_hash import hash_root
from kvasir_runtime.core.kv_cache_manager import KVCacheManager
from kvasir_runtime.core.scheduler import Scheduler, service_order
from kvasir_runtime.core.scheduler_output import SchedulerOutput
from kvasir_runtime.engine.grammar_queue import GrammarQueue, failure
from kvasir_runtime.engine.messages import (
    EngineOutput,
    EngineReady,
    EngineRequest,
    EngineStats,
    FinishReason,
    StartupProgress,
    StepOutputs,
)
from kvasir_runtime.request import Request, make_requests
from kvasir_runtime.structured.grammar import GrammarBackend
from kvasir_runtime.worker.host import cpu_count
from kvasir_runtime.worker.loader import load_engine
from kvasir_runtime.worker.model_runner import StepResult

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
        self._eos_token_ids = loaded.eos_token_ids
        kv = KVCacheManager(loaded.ready.num_blocks, loaded.ready.block_size, config.cache.eviction_policy)
        self._scheduler = Scheduler(config.scheduler, kv)
        self._seeds = random.Random(config.seed)  # noqa: S311 - picks tokens, guards nothing
        self._grammars = GrammarQueue(self._grammar_backend().compile)
        self._num_requests = self._steps = 0
        self._prompt_tokens = self._generation_tokens = 0
        self._last_check = 0.0

    def add_request(self, request: EngineRequest) -> None:
        """Queue a request. Raises ValueError, naming field, bound and value, for what can never run."""
        self._check(request)
        self._num_requests += 1
        group = make_requests(
            request,
            sort_key=service_order(self._config.scheduler, request.arrival_time, request.priority, self._num_requests),
            seed=self._seeds.getrandbits(64),
            max_model_len=self.ready.max_model_len,
            eos_token_ids=self._eos_token_ids,
            hash_root=self._hash_root(request),
        )
        if request.sampling.constraint is None:
            self._scheduler.add(group)
        else:
            self._grammars.add(group, request.sampling.constraint)

    def abort_requests(self, request_ids: Iterable[str]) -> None:
        """End requests, queued or running, without output. Ids that are not known (any more) are ignored."""
        for request_id in request_ids:
            self._scheduler.abort(request_id)
            self._grammars.abort(request_id)

    def has_work(self) -> bool:
        return self._scheduler.has_work() or bool(self._grammars)

    def step(self) -> StepOutputs:
        """Schedule, run, sample, update: every running sequence gets on. Without work it costs next to nothing."""
        refused = self._take_compiled()
        now = time.monotonic()
        plan = self._scheduler.schedule(now)
        if not plan.seats:
            self._check_when_idle(now)
            return StepOutputs(refused, self.stats())
        admitted = self._newly_admitted(plan, now)
        result = self._runner.execute(plan)
        self._keep_prompt_logprobs(result)
        self._steps += 1
        self._prompt_tokens += self._count_prompt_tokens(plan)
        self._generation_tokens += len(result.token_ids)
        advanced = self._scheduler.update(plan, result.token_ids)
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
            )
            for request, entry in zip(advanced, logprobs, strict=True)
        ]
        for row, reason in result.failed.items():
            outputs[row] = self._give_up(advanced[row], reason)
        return StepOutputs(refused + outputs, self.stats(), admitted)

    def stats(self) -> EngineStats:
        scheduler, pool = self._scheduler, self._scheduler.kv.pool
        return EngineStats(
            running=len(scheduler.running),
            waiting=scheduler.num_waiting + self._grammars.num_waiting,
            queued_tokens=scheduler.queued_tokens,
            blocks_total=pool.num_usable,
            blocks_active=pool.num_active,
            blocks_cached=pool.num_cached_free,
            prefix_query_tokens=scheduler.kv.query_tokens,
            prefix_hit_tokens=scheduler.kv.hit_tokens,
            preemptions=scheduler.preemptions,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            steps=self._steps,
            cache_value=scheduler.kv.value(time.monotonic()),
        )

    def check_integrity(self) -> None:
        """Raise AssertionError when the books of queue, seats and blocks contradict each other."""
        self._scheduler.check_integrity()

    def _check(self, request: EngineRequest) -> None:
        vocab = self.ready.vocab_size
        bad = next((token for token in request.prompt_token_ids if not 0 <= token < vocab), None)
        if bad is not None:
            msg = f"prompt token ids must be between 0 and {vocab - 1}, got {bad}"
            raise ValueError(msg)
        bad = next((token for token in request.sampling.logit_bias if not 0 <= token < vocab), None)
        if bad is not None:
            msg = f"token ids of logit_bias must be between 0 and {vocab - 1}, got {bad}"
            raise ValueError(msg)
        bad = next((token for token in request.sampling.stop_token_ids if not 0 <= token < vocab), None)
        if bad is not None:
            msg = f"stop_token_ids must be between 0 and {vocab - 1}, got {bad}"
            raise ValueError(msg)
        if self._scheduler.knows(request.request_id) or request.request_id in self._grammars:
            msg = f"request_id {request.request_id!r} is in use"
            raise ValueError(msg)

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
            if request is not None and request.num_output_tokens == 0:
                count += request.num_prompt_tokens
        return count

    def _keep_prompt_logprobs(self, result: StepResult) -> None:
        for seat, scored in result.prompt_logprobs.items():
            request = self._scheduler.seated[seat]
            assert request is not None, seat
            if request.prompt_logprobs is None:
                request.prompt_logprobs = [None] * request.num_prompt_tokens
            start = request.num_computed_tokens + 1
            request.prompt_logprobs[start : start + len(scored)] = scored

    def _check_when_idle(self, now: float) -> None:
        if not self.has_work() and now - self._last_check >= CHECK_INTERVAL_S:
            self._last_check = now
            self.check_integrity()
