"""Computes prefixes before anybody asks for them, and tells which ones are worth it."""

import asyncio
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

from pydantic import ValidationError

from kvasir_runtime.contract.admin_api import (
    Prefix,
    PrefixList,
    WarmupEnd,
    WarmupPrompt,
    WarmupRequest,
    WarmupState,
)
from kvasir_runtime.engine.async_engine import OutputStream
from kvasir_runtime.engine.messages import EngineRequest, FinishReason, ListPrefixes, PrefixesListed
from kvasir_runtime.sampling_params import SamplingParams
from kvasir_runtime.server.conversation import render
from kvasir_runtime.server.errors import ApiError
from kvasir_runtime.server.protocol import ChatMessage
from kvasir_runtime.server.service import Service, encode
from kvasir_runtime.tokenizer import Tokenizer

_SAMPLING: Final = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
"""A prompt has been computed when its first token is there."""


class _RefusedError(Exception):
    """A prompt that cannot be computed; the argument says why."""


@dataclass
class _Tally:
    prompts: int = 0
    computed_tokens: int = 0
    cached_tokens: int = 0
    refused: dict[int, str] = field(default_factory=dict)


class Warmup:
    """At most one at a time of one server."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._stream: OutputStream | None = None
        self._running = False

    async def run(self, body: WarmupRequest) -> WarmupState:
        """Compute the prompts one after the other, within the budgets; raises ApiError and what ends the engine."""
        service = self._service
        _, ready = service.loaded()
        service.take_no_work_while_stopping()
        if not service.args.enable_prefix_caching:
            msg = "there is nothing to warm up without --enable-prefix-caching"
            raise ApiError(HTTPStatus.CONFLICT, msg, code="no_prefix_cache")
        if self._running:
            raise ApiError(HTTPStatus.CONFLICT, "another warmup is under way", code="warmup_running")
        self._running, started, tally = True, time.monotonic(), _Tally()
        try:
            ended = await self._all(body, tally)
        finally:
            self._running = False
            if self._stream is not None:  # its time is over, or whoever asked has gone
                service.engine.abort(self._stream, "the warmup was given up")
        return WarmupState(
            boot_id=service.lifecycle.boot_id,
            ended=ended,
            prompts=tally.prompts,
            computed_tokens=tally.computed_tokens,
            cached_tokens=tally.cached_tokens,
            pinned_tokens=service.engine.stats.blocks_pinned * ready.block_size,
            seconds=round(time.monotonic() - started, 3),
            refused=tally.refused,
        )

    async def _all(self, body: WarmupRequest, tally: _Tally) -> WarmupEnd:
        try:
            async with asyncio.timeout(body.timeout_s):
                for position, prompt in enumerate(body.prompts):
                    room = body.max_tokens - tally.computed_tokens
                    try:
                        whole = await self._one(prompt, room, body.pin_s, tally)
                    except _RefusedError as reason:
                        tally.refused[position] = str(reason)
                        continue
                    if not whole:
                        return WarmupEnd.TOKEN_BUDGET
        except TimeoutError:
            return WarmupEnd.TIME_BUDGET
        return WarmupEnd.DONE

    async def _one(self, prompt: WarmupPrompt, room: int, pin_s: float, tally: _Tally) -> bool:
        """Compute one prompt, or as much of it as there is room for; returns whether that was all."""
        token_ids = await self._token_ids(prompt)
        part = token_ids[:room]
        if not part:
            return False
        request = EngineRequest(
            self._service.next_engine_id(),
            part,
            _SAMPLING,
            time.monotonic(),
            cache_salt=prompt.cache_salt,
            adapter=prompt.adapter,
            adapter_digest=self._adapter_digest(prompt),
            background=True,
            pin_s=pin_s,
        )
        self._stream = self._service.engine.submit([request])
        (output,) = await self._stream.next()
        if output.finish_reason is FinishReason.ERROR:
            raise _RefusedError(output.error)
        cached = output.cached_tokens or 0
        tally.prompts += 1
        tally.cached_tokens += cached
        tally.computed_tokens += len(part) - cached
        return len(part) == len(token_ids)

    def _adapter_digest(self, prompt: WarmupPrompt) -> str:
        try:
            return self._service.adapters.resolve(prompt.adapter) if prompt.adapter else ""
        except ApiError as error:
            raise _RefusedError(str(error)) from None

    async def _token_ids(self, prompt: WarmupPrompt) -> list[int]:
        tokenizer, ready = self._service.loaded()
        ids = prompt.token_ids or await _encode(tokenizer, prompt)
        if len(ids) >= ready.max_model_len:
            raise _RefusedError(f"it must be shorter than {ready.max_model_len} tokens, got {len(ids)}")
        if max(ids) >= ready.vocab_size:
            raise _RefusedError(f"token ids must be below {ready.vocab_size}, got {max(ids)}")
        return ids


async def _encode(tokenizer: Tokenizer, prompt: WarmupPrompt) -> list[int]:
    try:
        if prompt.messages is None:
            return await encode(tokenizer, prompt.text or "", add_special_tokens=True)
        messages = [ChatMessage.model_validate(message) for message in prompt.messages]
        text = render(tokenizer, messages, add_generation_prompt=False)
        return await encode(tokenizer, text, add_special_tokens=False)
    except (ApiError, ValidationError) as error:
        raise _RefusedError(str(error)) from None


async def list_prefixes(service: Service, count: int, max_tokens: int, *, salted: bool) -> PrefixList:
    """The hottest prefixes; raises ApiError while the model loads, and what ends the engine."""
    _, ready = service.loaded()
    listed = await service.engine.call(lambda call_id: ListPrefixes(call_id, count, max_tokens, salted))
    assert isinstance(listed, PrefixesListed), listed
    return PrefixList(
        prefixes=[
            Prefix(
                token_ids=each.token_ids,
                hits=each.hits,
                bytes=len(each.token_ids) * ready.kv_bytes_per_token,
                cached_tokens=each.cached_tokens,
                adapter=each.adapter,
                adapter_digest=each.adapter_digest,
                cache_salt=each.cache_salt,
            )
            for each in listed.prefixes
        ]
    )
