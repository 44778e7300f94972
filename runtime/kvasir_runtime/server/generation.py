"""From one HTTP request to the engine and back: prompts in, pieces of text for each choice out."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvasir_runtime.engine.async_engine import OutputStream
from kvasir_runtime.engine.detokenizer import Detokenizer
from kvasir_runtime.engine.messages import EngineOutput, EngineRequest, FinishReason, TokenLogprobs
from kvasir_runtime.sampling_params import SamplingParams
from kvasir_runtime.server.errors import bad_request, unavailable
from kvasir_runtime.server.replies import PromptTokensDetails, Usage
from kvasir_runtime.server.service import Service
from kvasir_runtime.structured.compiler import COMPILE_LIMIT_S

FIRST_OUTPUT_WAIT_S = 5.0
"""A stream's headers wait this long for the first token, so that what fails at once fails with a proper status."""

BUSY_RETRY_AFTER_S = 2.0
"""When a request may come again that was refused for the work of others."""

GRAMMAR_WAIT_S = FIRST_OUTPUT_WAIT_S + COMPILE_LIMIT_S
"""Likewise where a grammar may turn out to be wrong."""

OUTPUTS_AT_ONCE = 64
"""Outputs of one client turned into text before other clients get a turn: about 2 ms, 10 ms with many logprobs."""


@dataclass(frozen=True)
class Prompt:
    """Token ids, and the text they came from when the client sent text."""

    token_ids: list[int]
    text: str | None = None


@dataclass
class Delta:
    """What one step added to one choice. `finish_reason` is set on its last."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs]
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    @property
    def is_empty(self) -> bool:
        return not self.text and self.finish_reason is None


@dataclass
class Choice:
    """One continuation of one prompt, and all of it so far."""

    index: int
    prompt: Prompt
    detokenizer: Detokenizer
    eos_token_ids: frozenset[int]
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def take(self, output: EngineOutput) -> Delta:
        """Add what the engine produced; a stop string may end the choice before the engine would."""
        self.prompt_logprobs = output.prompt_logprobs or self.prompt_logprobs
        before = self.detokenizer.token_count
        text = self._read(output)
        used = self.detokenizer.token_count - before
        delta = Delta(self.index, text, output.new_token_ids[:used], (output.logprobs or [])[:used])
        delta.finish_reason, delta.stop_reason = self.finish_reason, self.stop_reason
        self.text += text
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        return delta

    def _read(self, output: EngineOutput) -> str:
        ended_by_token = output.stop_token_id is not None and output.new_token_ids[-1:] == [output.stop_token_id]
        visible = output.new_token_ids[:-1] if ended_by_token else output.new_token_ids
        text = self.detokenizer.push(visible)
        if self.detokenizer.stop_string is None and output.finish_reason is not None:
            self.detokenizer.token_count += len(output.new_token_ids) - len(visible)
            text += self.detokenizer.flush()
        if self.detokenizer.stop_string is not None:
            self.finish_reason, self.stop_reason = FinishReason.STOP, self.detokenizer.stop_string
        elif output.finish_reason is not None:
            self.finish_reason = output.finish_reason
            self.stop_reason = None if output.stop_token_id in self.eos_token_ids else output.stop_token_id
        return text


class Generation:
    """One client's prompts while the engine works on them. Always `close` it: that frees what still runs."""

    def __init__(
        self,
        service: Service,
        prompts: Sequence[Prompt],
        sampling: SamplingParams,
        make_detokenizer: Callable[[Prompt], Detokenizer],
        *,
        timeout_s: float | None = None,
        **options: Any,
    ) -> None:
        """Submit at once; raises EngineGoneError. It is cut after `timeout_s`, and where it waits for too long.

        `options`: what each prompt's `EngineRequest` takes further.
        """
        self._service = service
        self._sampling = sampling
        self._closed = False
        self._first_choice: dict[str, int] = {}
        self.prompts = prompts
        self.cached_tokens = 0
        self.tier_tokens: Counter[str] = Counter()
        self.choices = [
            Choice(number * sampling.n + continuation, prompt, make_detokenizer(prompt), service.eos_token_ids)
            for number, prompt in enumerate(prompts)
            for continuation in range(sampling.n)
        ]
        requests = [self._request(number, prompt, options) for number, prompt in enumerate(prompts)]
        self._stream: OutputStream = service.engine.submit(requests)
        service.lifecycle.enter()
        self._timers = list(self._watch_deadlines(timeout_s))

    async def wait_for_first_output(self) -> None:
        """Wait a little for the first output; raises what the engine or a drain ended the request with."""
        seconds = FIRST_OUTPUT_WAIT_S if self._sampling.constraint is None else GRAMMAR_WAIT_S
        try:
            async with asyncio.timeout(seconds):
                await self._stream.wait()
        except TimeoutError:
            return
        for output in self._stream.pending:
            _raise_refusal(output)

    async def deltas(self) -> AsyncIterator[list[Delta]]:
        """What became readable, in batches, until every choice has finished."""
        unfinished = len(self.choices)
        while unfinished:
            outputs = await self._stream.next()
            for start in range(0, len(outputs), OUTPUTS_AT_ONCE):
                if start:  # a backlog, as after a slow reader: others get their turn in between
                    await asyncio.sleep(0)
                batch = list(self._read(outputs[start : start + OUTPUTS_AT_ONCE]))
                unfinished -= sum(delta.finish_reason is not None for delta in batch)
                yield batch

    async def finish(self) -> None:
        """Let every choice run to its end."""
        async for _ in self.deltas():
            continue

    def _watch_deadlines(self, timeout_s: float | None) -> Iterator[asyncio.TimerHandle]:
        loop, engine, queue_s = asyncio.get_running_loop(), self._service.engine, self._service.args.queue_timeout
        if timeout_s is not None:
            reason = f"the answer was not complete after timeout_s = {timeout_s:g}"
            yield loop.call_later(timeout_s, engine.abort, self._stream, reason, "deadline_exceeded")
        if queue_s is not None:
            yield loop.call_later(queue_s, self._end_if_queued, f"still queued after queue_timeout = {queue_s:g} s")

    def _end_if_queued(self, reason: str) -> None:
        if self._service.engine.is_waiting(self._stream):
            self._service.engine.abort(self._stream, reason, "queue_timeout")

    def abort(self, reason: str = "the client has gone") -> None:
        self._service.engine.abort(self._stream, reason)

    def close(self) -> None:
        """Count what was done, and end what nobody waits for any more. Harmless when called again."""
        if self._closed:
            return
        self._closed = True
        for timer in self._timers:
            timer.cancel()
        self.abort("closed")
        self._service.lifecycle.leave()
        now = time.monotonic()
        for choice in self.choices:
            if choice.finish_reason is not None:
                self._service.rates.finished(len(choice.token_ids))
        for request_id, first in self._first_choice.items():
            group = self.choices[first : first + self._sampling.n]
            self._service.metrics.request_finished(
                self._stream.times[request_id],
                now,
                prompt_tokens=len(group[0].prompt.token_ids),
                generated=[(choice.finish_reason or FinishReason.ABORT, len(choice.token_ids)) for choice in group],
            )

    def summary(self) -> dict[str, Any]:
        """What the log says of it: numbers and reasons, never words."""
        first = [times.first_token - times.arrived for times in self._stream.times.values() if times.first_token]
        return {
            "prompt_tokens": sum(len(prompt.token_ids) for prompt in self.prompts),
            "cached_tokens": self.cached_tokens,
            **{f"cached_tokens_{tier}": tokens for tier, tokens in self.tier_tokens.items()},
            "completion_tokens": sum(len(choice.token_ids) for choice in self.choices),
            "finish_reason": ",".join(sorted({choice.finish_reason or FinishReason.ABORT for choice in self.choices})),
            "ttft_ms": round(min(first) * 1000, 1) if first else None,
        }

    def usage(self) -> Usage:
        prompt = sum(len(prompt.token_ids) for prompt in self.prompts)
        completion = sum(len(choice.token_ids) for choice in self.choices)
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=self._cached(),
        )

    def _cached(self) -> PromptTokensDetails:
        if not self.tier_tokens:
            return PromptTokensDetails(cached_tokens=self.cached_tokens)
        return PromptTokensDetails(cached_tokens=self.cached_tokens, cached_tokens_by_tier=dict(self.tier_tokens))

    def _read(self, outputs: Sequence[EngineOutput]) -> Iterator[Delta]:
        for output in outputs:
            _raise_refusal(output)
            if output.index == 0:
                self.cached_tokens += output.cached_tokens or 0
                self.tier_tokens.update(output.tier_tokens or {})
            choice = self.choices[self._first_choice[output.request_id] + output.index]
            if choice.finish_reason is None:  # else a stop string ended it and this was on its way
                delta = choice.take(output)
                if delta.finish_reason is not None and output.finish_reason is None:
                    self._service.engine.abort_sequence(output.request_id, output.index)
                yield delta

    def _request(self, number: int, prompt: Prompt, options: dict[str, Any]) -> EngineRequest:
        request_id = self._service.next_engine_id()
        self._first_choice[request_id] = number * self._sampling.n
        return EngineRequest(request_id, prompt.token_ids, self._sampling, time.monotonic(), **options)


def _raise_refusal(output: EngineOutput) -> None:
    if output.finish_reason is FinishReason.ERROR:
        field, reason = output.error_field, output.error or "the engine refused the request"
        if output.error_passes:
            raise unavailable(f"{field} {reason}".strip(), "overloaded", BUSY_RETRY_AFTER_S)
        raise bad_request(f"{field} {reason}".strip(), field or None, "invalid_value" if field else None)
