"""What every endpoint works with: the engine, the tokenizer, the lifecycle, and who may have work done."""

import asyncio
import itertools
import os
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

from kvasir_runtime.contract.engine_args import EngineArgs
from kvasir_runtime.edge.auth import BearerTokens
from kvasir_runtime.engine.async_engine import AsyncEngine, EngineGoneError
from kvasir_runtime.engine.messages import EngineReady
from kvasir_runtime.model_files import ModelFiles
from kvasir_runtime.sampling_params import SamplingParams
from kvasir_runtime.server.adapters import AdapterRegistry
from kvasir_runtime.server.admission import Deadlines, Load, refusal
from kvasir_runtime.server.errors import ApiError, bad_request, unavailable
from kvasir_runtime.server.lifecycle import DRAIN_RETRY_AFTER_S, Lifecycle, StartupClock
from kvasir_runtime.server.metrics import Metrics
from kvasir_runtime.server.rates import Rates
from kvasir_runtime.server.sleep import Sleep
from kvasir_runtime.tokenizer import Tokenizer

LOADING_RETRY_AFTER_S = 5.0
ENCODE_IN_THREAD_FROM = 20_000
"""Characters from which a prompt is tokenized beside the event loop: about 5 ms of work."""


@dataclass
class Service:
    """One served model. `tokenizer` and `ready` are None until the start-up is done."""

    args: EngineArgs
    model: ModelFiles
    engine: AsyncEngine
    lifecycle: Lifecycle
    clock: StartupClock
    metrics: Metrics
    rates: Rates
    api_keys: BearerTokens
    admin_tokens: BearerTokens
    sleep: Sleep
    adapters: AdapterRegistry
    tokenizer: Tokenizer | None = None
    ready: EngineReady | None = None
    started_at: int = field(default_factory=lambda: int(time.time()))
    _engine_ids: "itertools.count[int]" = field(default_factory=itertools.count)

    @property
    def model_names(self) -> list[str]:
        return self.args.served_model_name or [Path(self.args.model).resolve().name]

    @property
    def runtime_lora_updating(self) -> bool:
        """Whether users may load and unload adapters."""
        allowed = os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "").strip().lower() in ("1", "true")
        return self.args.enable_lora and (self.args.allow_runtime_lora_updating or allowed)

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return frozenset(self.model.eos_token_ids)

    def next_engine_id(self) -> str:
        """An id that no other request of this process has; clients' own ids may repeat."""
        return str(next(self._engine_ids))

    def loaded(self) -> tuple[Tokenizer, EngineReady]:
        """Tokenizer and engine; raises ApiError (503) while the model loads, EngineGoneError when it has ended."""
        if self.engine.failure is not None:
            raise EngineGoneError(self.engine.failure)
        if self.tokenizer is None or self.ready is None:
            raise unavailable("the model is loading", "loading", LOADING_RETRY_AFTER_S)
        return self.tokenizer, self.ready

    def check_model(self, name: str | None) -> str:
        """The name to answer with; raises ApiError: 404 for one that is not served, 503 for an adapter that loads."""
        if name is None:
            return self.model_names[0]
        if name in self.adapters.adapters:
            self.adapters.resolve(name)
        elif name not in self.model_names:
            known = ", ".join([*self.model_names, *self.adapters.adapters])
            msg = f"model {name!r} does not exist; served: {known}"
            raise ApiError(HTTPStatus.NOT_FOUND, msg, param="model", code="model_not_found")
        return name

    def adapter_of(self, name: str) -> dict[str, str]:
        """The fields of an `EngineRequest` that say which adapter it gets; to be sent at once, see `adapters.py`."""
        if name in self.model_names:
            return {}
        return {"adapter": name, "adapter_digest": self.adapters.asked_for(name)}

    def admit(
        self, num_sequences: int, num_tokens: int, sampling: SamplingParams, *, timeout_s: float | None, priority: int
    ) -> None:
        """Refuse work that cannot be taken now, or not in time, before it is queued.

        Raises ApiError: 503 while draining or asleep, 429 with a full queue and when a deadline cannot be met.
        """
        self.take_no_work_while_stopping()
        free_seats = max(0, self.args.max_num_seqs - self.engine.stats.running)
        if self.engine.waiting + num_sequences > self.args.max_queued_requests + free_seats:
            raise self._full("requests", self.engine.waiting, self.args.max_queued_requests)
        limit = self.args.max_queued_tokens
        if limit is not None and self.engine.waiting_tokens and self.engine.waiting_tokens + num_tokens > limit:
            raise self._full("prompt tokens", self.engine.waiting_tokens, limit)
        deadlines = Deadlines(self.args.queue_timeout, timeout_s)
        refused = refusal(self._load(free_seats, priority), deadlines, num_tokens, sampling.least_output_tokens)
        if refused is not None:
            raise ApiError(
                HTTPStatus.TOO_MANY_REQUESTS,
                refused.message,
                param="timeout_s" if refused.code == "deadline_unreachable" else None,
                code=refused.code,
                retry_after_s=refused.retry_after_s,
            )

    def _load(self, free_seats: int, priority: int) -> Load:
        first = priority if self.args.scheduling_policy == "priority" else None
        waiting, waiting_tokens = self.engine.waiting_before(first)
        now = time.monotonic()
        return Load(
            waiting=waiting,
            waiting_tokens=waiting_tokens,
            free_seats=free_seats,
            prompt_speed=self.rates.prompt_speed(now),
            token_s=self.rates.token_s(now),
            finished_per_s=self.rates.finished_per_s(self.args.max_num_seqs, now),
        )

    def take_no_work_while_stopping(self) -> None:
        """Raise ApiError (503) while draining or asleep."""
        if self.lifecycle.draining:
            raise unavailable("the server is draining", "draining", DRAIN_RETRY_AFTER_S)
        self.sleep.refuse_work()

    def _full(self, unit: str, waiting: int, limit: int) -> ApiError:
        retry_after = min(60.0, self._load(free_seats=0, priority=0).wait_s())
        msg = f"the queue is full: {waiting} {unit} wait, the limit is {limit}"
        return ApiError(HTTPStatus.TOO_MANY_REQUESTS, msg, code="queue_full", retry_after_s=retry_after)


async def encode(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    """Tokenize without holding up the event loop when the text is long; raises ApiError (400) for what is no text."""
    try:
        if len(text) < ENCODE_IN_THREAD_FROM:
            return tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return await asyncio.to_thread(tokenizer.encode, text, add_special_tokens=add_special_tokens)
    except UnicodeEncodeError:
        raise bad_request("the text holds a lone surrogate, which is no character", code="invalid_value") from None
