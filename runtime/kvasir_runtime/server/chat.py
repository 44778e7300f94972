"""`POST /v1/chat/completions`."""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from kvasir_runtime.chat_template import ChatTemplateError
from kvasir_runtime.logs import request_id
from kvasir_runtime.server.completions import answer, check_prompts, detokenizer_factory, wants_usage
from kvasir_runtime.server.errors import bad_request
from kvasir_runtime.server.generation import Choice, Delta, Generation, Prompt
from kvasir_runtime.server.logprobs import chat_logprobs, prompt_logprobs
from kvasir_runtime.server.protocol import ChatCompletionRequest, ChatMessage
from kvasir_runtime.server.replies import AssistantMessage, ChatChoice, ChatCompletionReply
from kvasir_runtime.server.sampling import refuse_unsupported, sampling_params
from kvasir_runtime.server.service import Service, encode
from kvasir_runtime.server.stream import DONE, event
from kvasir_runtime.tokenizer import Tokenizer


async def create_chat_completion(service: Service, body: ChatCompletionRequest, request: Request) -> Response:
    """Answer a conversation, streamed or whole; raises ApiError and what ended the engine."""
    tokenizer, ready = service.loaded()
    model = service.check_model(body.model)
    refuse_unsupported(body)
    text = render(
        tokenizer,
        body.messages,
        add_generation_prompt=body.add_generation_prompt,
        variables=body.chat_template_kwargs,
    )
    prompts = [Prompt(await encode(tokenizer, text, add_special_tokens=False), text)]
    check_prompts(prompts, body, ready, "messages")
    length = len(prompts[0].token_ids)
    sampling = sampling_params(body, service.model.generation, ready.max_model_len - length)
    service.admit(1, length)
    generation = Generation(
        service,
        prompts,
        sampling,
        detokenizer_factory(tokenizer, body),
        priority=body.priority,
        cache_salt=body.cache_salt,
        **service.adapter_of(model),
    )
    reply = _Reply(tokenizer, body, generation, model)
    return await answer(generation, request, reply.whole, reply.events if body.stream else None)


def render(
    tokenizer: Tokenizer,
    messages: Sequence[ChatMessage],
    *,
    add_generation_prompt: bool,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The conversation as the model was trained to read it; raises ApiError (400) when its template refuses."""
    turns = [_as_template_reads(number, turn) for number, turn in enumerate(messages)]
    try:
        return tokenizer.render_chat(turns, add_generation_prompt=add_generation_prompt, variables=variables)
    except ChatTemplateError as error:
        raise bad_request(str(error), "messages", code="invalid_value") from None


def _as_template_reads(number: int, message: ChatMessage) -> dict[str, Any]:
    """A plain dict; content in parts becomes one text, as most templates expect."""
    turn = message.model_dump(exclude_unset=True)
    if isinstance(message.content, list):
        for place, part in enumerate(message.content):
            if part.type != "text" or part.text is None:
                path = f"messages[{number}].content[{place}]"
                raise bad_request(
                    f"{path} must be of type 'text' with a text, got {part.type!r}", path, "invalid_value"
                )
        turn["content"] = "\n".join(part.text or "" for part in message.content)
    return turn


class _Reply:
    """Shapes one generation as chat completions, whole or in chunks."""

    def __init__(self, tokenizer: Tokenizer, body: ChatCompletionRequest, generation: Generation, model: str) -> None:
        self._tokenizer = tokenizer
        self._body = body
        self._generation = generation
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
        reply = ChatChoice(
            index=choice.index,
            message=AssistantMessage(role="assistant", content=choice.text, refusal=None),
            logprobs=logprobs,
            finish_reason=choice.finish_reason or "",
            stop_reason=choice.stop_reason,
        )
        if self._body.return_token_ids:
            reply.token_ids = choice.token_ids
        return reply

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
        if delta.is_empty and not (wanted and delta.token_ids):
            return b""
        data: dict[str, Any] = {
            "index": delta.index,
            "delta": {"content": delta.text} if delta.text else {},
            "logprobs": self._chunk_logprobs(delta),
            "finish_reason": delta.finish_reason,
        }
        if delta.finish_reason is not None:
            data["stop_reason"] = delta.stop_reason
        if self._body.return_token_ids:
            data["token_ids"] = delta.token_ids
        return event({**self._chunk_head, "choices": [data]})

    def _chunk_logprobs(self, delta: Delta) -> dict[str, Any] | None:
        if not self._body.logprobs:
            return None
        return chat_logprobs(self._tokenizer, delta.logprobs, self._top).model_dump()

    def _usage_event(self) -> bytes:
        if not wants_usage(self._body):
            return b""
        return event({**self._chunk_head, "choices": [], "usage": self._generation.usage().model_dump()})
