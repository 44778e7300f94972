"""`POST /v1/chat/completions`."""

import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from kvasir_runtime.logs import request_id
from kvasir_runtime.server.completions import answer, check_prompts, detokenizer_factory, wants_usage
from kvasir_runtime.server.constraints import constraint_of
from kvasir_runtime.server.conversation import render
from kvasir_runtime.server.generation import Choice, Delta, Generation, Prompt
from kvasir_runtime.server.logprobs import chat_logprobs, prompt_logprobs
from kvasir_runtime.server.protocol import ChatCompletionRequest
from kvasir_runtime.server.replies import AssistantMessage, ChatChoice, ChatCompletionReply, ToolCall
from kvasir_runtime.server.sampling import refuse_unsupported, sampling_params
from kvasir_runtime.server.service import Service, encode
from kvasir_runtime.server.stream import DONE, event
from kvasir_runtime.server.tools.deltas import ChoiceCalls
from kvasir_runtime.server.tools.use import ToolUse, tool_use
from kvasir_runtime.tokenizer import Tokenizer


async def create_chat_completion(service: Service, body: ChatCompletionRequest, request: Request) -> Response:
    """Answer a conversation, streamed or whole; raises ApiError and what ended the engine."""
    tokenizer, ready = service.loaded()
    model = service.check_model(body.model)
    refuse_unsupported(body)
    use = tool_use(body, tokenizer, service.args.tool_call_parser)
    answer_constraint = constraint_of(body)
    constraint = answer_constraint if use is None else use.constraint(answer_constraint, tokenizer)
    text = render(
        tokenizer,
        body.messages,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        variables=body.chat_template_kwargs,
        tools=None if use is None else body.tools,
        tool_format=None if use is None else use.tool_format,
    )
    prompts = [Prompt(await encode(tokenizer, text, add_special_tokens=False), text)]
    check_prompts(prompts, body, ready, "messages")
    length = len(prompts[0].token_ids)
    sampling = sampling_params(body, service.model.generation, ready.max_model_len - length, constraint)
    service.admit(1, length, sampling, timeout_s=body.timeout_s, priority=body.priority)
    generation = Generation(
        service,
        prompts,
        sampling,
        detokenizer_factory(
            tokenizer, body, show_special_tokens=use is not None and use.shows_special_tokens(tokenizer)
        ),
        timeout_s=body.timeout_s,
        priority=body.priority,
        cache_salt=body.cache_salt,
        **service.adapter_of(model),
    )
    reply = _Reply(tokenizer, body, generation, model, use)
    return await answer(generation, request, reply.whole, reply.events if body.stream else None)


class _Reply:
    """Shapes one generation as chat completions, whole or in chunks."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        body: ChatCompletionRequest,
        generation: Generation,
        model: str,
        use: ToolUse | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._body = body
        self._generation = generation
        self._use = use
        self._calls = [] if use is None else [ChoiceCalls(use) for _ in generation.choices]
        self._head = {"id": f"chatcmpl-{request_id.get()}", "created": int(time.time()), "model": model}
        self._chunk_head = {**self._head, "object": "chat.completion.chunk"}
        if wants_usage(body):
            self._chunk_head["usage"] = None

    def whole(self) -> ChatCompletionReply:
        reply = ChatCompletionReply(
            **self._head,
            object="chat.completion",
            choices=[self._choice(choice) for choice in self._generation.choices],
            usage=self._generation.usage(),
        )
        if self._body.return_token_ids:
            reply.prompt_token_ids = self._generation.prompts[0].token_ids
        if self._body.prompt_logprobs is not None:
            reply.prompt_logprobs = prompt_logprobs(self._tokenizer, self._generation.choices[0].prompt_logprobs)
        return reply

    async def events(self) -> AsyncIterator[bytes]:
        yield b"".join(self._opening(choice) for choice in self._generation.choices)
        async for deltas in self._generation.deltas():
            if chunk := b"".join(map(self._chunk, deltas)):
                yield chunk
        yield self._usage_event() + DONE

    def _choice(self, choice: Choice) -> ChatChoice:
        logprobs = chat_logprobs(self._tokenizer, choice.logprobs, self._top) if self._body.logprobs else None
        message, finish_reason = self._message(choice)
        reply = ChatChoice(
            index=choice.index,
            message=message,
            logprobs=logprobs,
            finish_reason=finish_reason,
            stop_reason=choice.stop_reason,
        )
        if self._body.return_token_ids:
            reply.token_ids = choice.token_ids
        return reply

    def _message(self, choice: Choice) -> tuple[AssistantMessage, str]:
        """What the assistant said or called, and why it ended."""
        if self._use is None:
            return AssistantMessage(role="assistant", content=choice.text, refusal=None), choice.finish_reason or ""
        calls = self._calls[choice.index]
        said = calls.push(choice.text, last=True)
        message = AssistantMessage(role="assistant", content=said.content, refusal=None)
        if said.calls:
            message.content = said.content or None
            message.tool_calls = [ToolCall.model_validate(call) for call in said.calls]
        return message, self._use.finish_reason(choice.finish_reason, called=calls.called) or ""

    @property
    def _top(self) -> int:
        return self._body.top_logprobs or 0

    def _opening(self, choice: Choice) -> bytes:
        """The chunk that names the role, before any text."""
        data = {
            "index": choice.index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        prompt = {"prompt_token_ids": choice.prompt.token_ids} if self._body.return_token_ids else {}
        return event({**self._chunk_head, **prompt, "choices": [data]})

    def _chunk(self, delta: Delta) -> bytes:
        """One event; nothing for a step that only added part of a character."""
        wanted = self._body.return_token_ids or self._body.logprobs
        said, finish_reason = self._said(delta)
        if not said and finish_reason is None and not (wanted and delta.token_ids):
            return b""
        data: dict[str, Any] = {
            "index": delta.index,
            "delta": said,
            "logprobs": self._chunk_logprobs(delta),
            "finish_reason": finish_reason,
        }
        if delta.finish_reason is not None:
            data["stop_reason"] = delta.stop_reason
        if self._body.return_token_ids:
            data["token_ids"] = delta.token_ids
        return event({**self._chunk_head, "choices": [data]})

    def _said(self, delta: Delta) -> tuple[dict[str, Any], str | None]:
        """What the delta adds to the message, and why the choice ended, if it did."""
        if self._use is None:
            return {"content": delta.text} if delta.text else {}, delta.finish_reason
        calls = self._calls[delta.index]
        read = calls.push(delta.text, last=delta.finish_reason is not None)
        said: dict[str, Any] = {"content": read.content} if read.content else {}
        if read.calls:
            said["tool_calls"] = read.calls
        return said, self._use.finish_reason(delta.finish_reason, called=calls.called)

    def _chunk_logprobs(self, delta: Delta) -> dict[str, Any] | None:
        if not self._body.logprobs:
            return None
        return chat_logprobs(self._tokenizer, delta.logprobs, self._top).model_dump()

    def _usage_event(self) -> bytes:
        if not wants_usage(self._body):
            return b""
        return event({**self._chunk_head, "choices": [], "usage": self._generation.usage().model_dump()})
