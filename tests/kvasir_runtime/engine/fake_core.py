"""An engine core without a model: repeats the prompt's tokens, and fails on demand.

A request's `cache_salt` says what shall go wrong: `raise`, `exit`, `disconnect`, `block` or `spin` in the next step,
`slow` for a step of 50 ms, `refuse` when it arrives. The environment variable `FAKE_CORE_START` makes the start fail:
`raise`, `oom`, `exit` or `block`. It remembers the token ids of background requests as cached, and lists prefixes and
sleeps in pretence.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kvasir_runtime.config import EngineConfig
from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.engine.messages import (
    AdapterLoaded,
    AdapterStates,
    AdapterUse,
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
    SleepDone,
    StartupProgress,
    StepOutputs,
    TokenLogprobs,
)

VOCAB_SIZE = 3072


@dataclass
class _Running:
    request: EngineRequest
    produced: int = 0
    announced: bool = False


@dataclass
class FakeCore:
    config: EngineConfig
    on_progress: Callable[[StartupProgress], None]
    waiting: list[EngineRequest] = field(default_factory=list)
    running: dict[str, _Running] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: {"prompt": 0, "generation": 0, "steps": 0})
    cached: set[tuple[int, ...]] = field(default_factory=set)
    level: int = 0
    adapters: dict[str, Any] = field(default_factory=dict)
    told: AdapterStates | None = None

    def __post_init__(self) -> None:
        self.on_progress(StartupProgress("weights", 0.5, "half of nothing"))
        _misbehave(os.environ.get("FAKE_CORE_START", ""))
        self.ready = EngineReady(
            max_model_len=self.config.max_model_len or 2048,
            vocab_size=VOCAB_SIZE,
            block_size=16,
            num_blocks=1025,
            weights_bytes=1000,
            kv_bytes_per_token=100,
            model_digest="fake",
            dtype="float32",
            startup_seconds={"weights": 0.0},
        )

    def add_request(self, request: EngineRequest) -> None:
        if self.level:
            raise ValueError("the core sleeps")
        if request.cache_salt == "refuse":
            raise ValueError("the core refuses this")
        self.waiting.append(request)

    def abort_sequences(self, sequences: list[tuple[str, int]]) -> None:
        """The fake goes on with them; nobody listens."""

    def abort_requests(self, request_ids: list[str]) -> None:
        self.waiting = [request for request in self.waiting if request.request_id not in request_ids]
        for request_id in request_ids:
            self.running.pop(request_id, None)

    def call(self, call: Call) -> Answer:
        if isinstance(call, ListPrefixes):
            found = [PrefixReport(list(range(16 * n)), 4.0 / n, 16, "", "", "") for n in range(1, 4)]
            salted = [PrefixReport([7] * 16, 9.0, 16, "", "", "tenant")] if call.salted else []
            return PrefixesListed(call.call_id, [*salted, *found][: call.count])
        if isinstance(call, SaveCache):
            return CacheSaved(call.call_id, 7, complete=True)
        if isinstance(call, ResetCache):
            return CacheReset(call.call_id, {"device": 5} | ({"disk": 2} if call.files else {}))
        if self.has_work():
            return SleepDone(call.call_id, self.level, error="requests still run")
        freed, self.level = 1000 * (call.level - self.level), call.level
        return SleepDone(call.call_id, call.level, freed, 5000 - 1000 * call.level, 0.25)

    def load_adapter(self, message: LoadAdapter) -> AdapterLoaded | None:
        self.adapters[message.digest] = "device" if message.pinned else "host"
        return AdapterLoaded(message.digest, 1000)

    def unload_adapter(self, digest: str) -> None:
        self.adapters.pop(digest, None)

    def poll(self) -> list[FromEngine]:
        states = AdapterStates([AdapterUse(digest, where, 1000) for digest, where in self.adapters.items()])
        told, self.told = self.told, states
        return [] if told == states else [states]

    def is_waiting(self) -> bool:
        return False

    def check_when_idle(self, now: float) -> None:
        """There are no books."""

    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def stats(self) -> EngineStats:
        tokens = sum(len(run.request.prompt_token_ids) + run.produced for run in self.running.values())
        return EngineStats(
            running=len(self.running),
            waiting=len(self.waiting),
            blocks_total=1024,
            blocks_active=-(-tokens // 16),
            prompt_tokens=self.counts["prompt"],
            generation_tokens=self.counts["generation"],
            steps=self.counts["steps"],
        )

    def step(self) -> StepOutputs:
        admitted = {}
        while self.waiting and len(self.running) < self.config.scheduler.max_num_seqs:
            request = self.waiting.pop(0)
            self.running[request.request_id] = _Running(request)
            self.counts["prompt"] += len(request.prompt_token_ids)
            admitted[request.request_id] = request.arrival_time
        for how in {run.request.cache_salt for run in self.running.values()}:
            _misbehave(how)
        outputs = [output for run in list(self.running.values()) for output in self._advance(run)]
        self.counts["steps"] += 1
        return StepOutputs(outputs, self.stats(), admitted)

    def _advance(self, run: _Running) -> list[EngineOutput]:
        request, sampling = run.request, run.request.sampling
        token = request.prompt_token_ids[run.produced % len(request.prompt_token_ids)]
        first = run.produced == 0
        cached = len(request.prompt_token_ids) if tuple(request.prompt_token_ids) in self.cached else 0
        if request.background:
            self.cached.add(tuple(request.prompt_token_ids))
        run.produced += 1
        self.counts["generation"] += sampling.n
        reason = FinishReason.LENGTH if run.produced == sampling.max_tokens else None
        stop = token if token in sampling.stop_token_ids else None
        reason = FinishReason.STOP if stop is not None else reason
        if reason is not None:
            self.running.pop(request.request_id)
        return [
            EngineOutput(
                request.request_id,
                [token],
                index,
                finish_reason=reason,
                stop_token_id=stop,
                logprobs=_logprobs(token, sampling.logprobs),
                prompt_logprobs=_prompt_logprobs(request) if first else None,
                cached_tokens=cached if first else None,
            )
            for index in range(sampling.n)
        ]


def _logprobs(token: int, top: int | None) -> list[TokenLogprobs] | None:
    if top is None:
        return None
    return [TokenLogprobs(token, -0.5, 0, [(token, -0.5), *((5 + rank, -1.5 - rank) for rank in range(top))][:top])]


def _prompt_logprobs(request: EngineRequest) -> list[TokenLogprobs | None] | None:
    if request.sampling.prompt_logprobs is None:
        return None
    return [None, *(TokenLogprobs(token, -2.0, 1, []) for token in request.prompt_token_ids[1:])]


def _misbehave(how: str) -> None:
    match how:
        case "raise":
            raise RuntimeError("told to raise")
        case "oom":
            raise KvasirError(Cause.OUT_OF_MEMORY_WEIGHTS, "weights need 9Gi, the limit is 1Gi", "raise the limit")
        case "exit":
            os._exit(3)
        case "disconnect":
            os.closerange(3, 256)
        case "block":
            threading.Event().wait()
        case "spin":
            while True:
                pass
        case "slow":
            threading.Event().wait(0.05)
