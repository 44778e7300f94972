"""`POST /v1/completions`."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from kvasir_runtime.engine.detokenizer import Detokenizer
from kvasir_runtime.engine.messages import EngineReady
from kvasir_runtime.logs import request_id
from kvasir_runtime.server.constraints import constraint_of
from kvasir_runtime.server.errors import bad_request
from kvasir_runtime.server.generation import Choice, Delta, Generation, Prompt
from kvasir_runtime.server.logprobs import completion_logprobs, prompt_logprobs, token_text
from kvasir_runtime.server.middleware import LOG_FIELDS
from kvasir_runtime.server.protocol import CompletionRequest, GenerationRequest
from kvasir_runtime.server.replies import ChatCompletionReply, CompletionChoice, CompletionLogprobs, CompletionReply
from kvasir_runtime.server.sampling import context_length_exceeded, refuse_unsupported, sampling_params, stop_strings
from kvasir_runtime.server.service import Service, encode
from kvasir_runtime.server.stream import CLIENT_CLOSED_REQUEST, DONE, DisconnectWatch, EventStream, event
from kvasir_runtime.tokenizer import Tokenizer


async def create_completion(service: Service, body: CompletionRequest, request: Request) -> Response:
    """Complete one or several prompts, streamed or whole; raises ApiError and what ended the engine."""
    tokenizer, ready = service.loaded()
    model = service.check_model(body.model)
    refuse_unsupported(body)
    prompts = await read_prompts(tokenizer, body)
    check_prompts(prompts, body, ready)
    longest = max(len(prompt.token_ids) for prompt in prompts)
    room = ready.max_model_len - longest
    sampling = sampling_params(body, service.model.generation, room, constraint_of(body))
    num_tokens = sum(len(prompt.token_ids) for prompt in prompts)
    service.admit(len(prompts), num_tokens, sampling, timeout_s=body.timeout_s, priority=body.priority)
    generation = Generation(
        service,
        prompts,
        sampling,
        detokenizer_factory(tokenizer, body),
        timeout_s=body.timeout_s,
        priority=body.priority,
        cache_salt=body.cache_salt,
        **service.adapter_of(model),
    )
    reply = _Reply(tokenizer, body, generation, model)
    return await answer(generation, request, reply.whole, reply.events if body.stream else None)


async def answer(
    generation: Generation,
    request: Request,
    whole: Callable[[], CompletionReply | ChatCompletionReply],
    events: Callable[[], AsyncIterator[bytes]] | None,
) -> Response:
    """Run a generation to its end, or hand it to a stream once its first token is there; frees it in any case."""
    watch = DisconnectWatch(request.receive, generation.abort)

    def close() -> None:
        watch.stop()
        generation.close()
        request.scope[LOG_FIELDS] = generation.summary()

    try:
        if events is not None:
            await generation.wait_for_first_output()
            return EventStream(events(), close)
        await generation.finish()
        response = Response(whole().to_json(), media_type="application/json")
    except BaseException:
        close()
        if watch.gone:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        raise
    close()
    return response


async def read_prompts(tokenizer: Tokenizer, body: CompletionRequest) -> list[Prompt]:
    """The prompts as token ids, in order."""
    prompts: list[Any] = body.prompt if isinstance(body.prompt, list) else [body.prompt]
    if prompts and isinstance(prompts[0], int):
        return [Prompt(prompts)]
    return [
        Prompt(await encode(tokenizer, prompt, add_special_tokens=body.add_special_tokens), prompt)
        if isinstance(prompt, str)
        else Prompt(prompt)
        for prompt in prompts
    ]


def check_prompts(prompts: list[Prompt], body: GenerationRequest, ready: EngineReady, param: str = "prompt") -> None:
    """Raise ApiError (400) for what the model cannot take: empty, too long, or token ids it does not have."""
    for prompt in prompts:
        length = len(prompt.token_ids)
        if length == 0:
            raise bad_request(f"{param} must hold at least 1 token, got 0", param, code="invalid_value")
        if length >= ready.max_model_len:
            msg = (
                f"{param} must be shorter than the model's context of {ready.max_model_len} tokens, got {length} tokens"
            )
            raise context_length_exceeded(msg, param)
        _check_ids(param, max(prompt.token_ids), ready.vocab_size)
    _check_ids("logit_bias", max(body.logit_bias or {0: 0.0}), ready.vocab_size)
    _check_ids("stop_token_ids", max(body.stop_token_ids or [0]), ready.vocab_size)


def _check_ids(param: str, largest: int, vocab_size: int) -> None:
    if largest >= vocab_size:
        raise bad_request(
            f"token ids in {param} must be below {vocab_size}, got {largest}", param, code="invalid_value"
        )


def detokenizer_factory(
    tokenizer: Tokenizer, body: GenerationRequest, *, show_special_tokens: bool = False
) -> Callable[[Prompt], Detokenizer]:
    """What turns one choice's tokens into text, as the request wants it, or with all special tokens."""

    def make(prompt: Prompt) -> Detokenizer:
        return Detokenizer(
            tokenizer,
            prompt.token_ids,
            stop=stop_strings(body.stop),
            include_stop=body.include_stop_str_in_output,
            min_tokens=body.min_tokens,
            skip_special_tokens=body.skip_special_tokens and not show_special_tokens,
        )

    return make


def most_likely(choices: Sequence[Choice], computed: int, kept: int) -> list[Choice]:
    """The `kept` of each prompt's `computed` choices with the highest mean log-probability of a token, best first."""
    best: list[Choice] = []
    for first in range(0, len(choices), computed):
        best += sorted(choices[first : first + computed], key=_mean_logprob, reverse=True)[:kept]
    return best


def _mean_logprob(choice: Choice) -> float:
    return sum(each.logprob for each in choice.logprobs) / max(1, len(choice.logprobs))


class _Reply:
    """Shapes one generation as completions, whole or in chunks."""

    def __init__(self, tokenizer: Tokenizer, body: CompletionRequest, generation: Generation, model: str) -> None:
        self._tokenizer = tokenizer
        self._body = body
        self._generation = generation
        self._head = {
            "id": f"cmpl-{request_id.get()}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self._offsets = [0] * len(generation.choices)

    def whole(self) -> CompletionReply:
        kept = self._generation.choices
        if self._body.best_of is not None:
            kept = most_likely(kept, self._body.best_of, self._body.n or 1)
        choices = [self._choice(choice).model_copy(update={"index": index}) for index, choice in enumerate(kept)]
        return CompletionReply(**self._head, choices=choices, usage=self._generation.usage())

    async def events(self) -> AsyncIterator[bytes]:
        if self._body.echo:
            yield b"".join(self._chunk(self._echo(choice), choice) for choice in self._generation.choices)
        async for deltas in self._generation.deltas():
            if chunk := b"".join(self._chunk(delta, self._generation.choices[delta.index]) for delta in deltas):
                yield chunk
        yield self._usage_event() + DONE

    def _choice(self, choice: Choice) -> CompletionChoice:
        reply = CompletionChoice(
            index=choice.index,
            text=self._prompt_text(choice) + choice.text,
            logprobs=self._logprobs(choice),
            finish_reason=choice.finish_reason,
            stop_reason=choice.stop_reason,
        )
        if self._body.return_token_ids:
            reply.prompt_token_ids, reply.token_ids = choice.prompt.token_ids, choice.token_ids
        if self._body.prompt_logprobs is not None:
            reply.prompt_logprobs = prompt_logprobs(self._tokenizer, choice.prompt_logprobs)
        return reply

    def _logprobs(self, choice: Choice) -> CompletionLogprobs | None:
        top = self._body.logprobs
        if top is None:
            return None
        prompt = (choice.prompt_logprobs or []) if self._body.echo else []
        reply = completion_logprobs(self._tokenizer, [*prompt, *choice.logprobs], top)
        if prompt:  # the first prompt token has no probability, but it has a text
            first = token_text(self._tokenizer, choice.prompt.token_ids[0])
            reply.tokens[0] = first
            reply.text_offset[1:] = [offset + len(first) for offset in reply.text_offset[1:]]
        return reply

    def _prompt_text(self, choice: Choice) -> str:
        if not self._body.echo:
            return ""
        text = choice.prompt.text
        return self._tokenizer.decode(choice.prompt.token_ids) if text is None else text

    def _echo(self, choice: Choice) -> Delta:
        return Delta(choice.index, self._prompt_text(choice), [], [])

    def _chunk(self, delta: Delta, choice: Choice) -> bytes:
        """One event; nothing for a step that only added part of a character."""
        wanted = self._body.return_token_ids or self._body.logprobs is not None
        if delta.is_empty and not (wanted and delta.token_ids):
            return b""
        data: dict[str, Any] = {
            "index": delta.index,
            "text": delta.text,
            "logprobs": self._chunk_logprobs(delta),
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
        }
        if self._body.return_token_ids:
            data["token_ids"] = delta.token_ids
            if len(choice.token_ids) == len(delta.token_ids):
                data["prompt_token_ids"] = choice.prompt.token_ids
        return event({**self._head, "choices": [data], **self._no_usage_yet()})

    def _chunk_logprobs(self, delta: Delta) -> dict[str, Any] | None:
        if self._body.logprobs is None:
            return None
        offset = self._offsets[delta.index]
        reply = completion_logprobs(self._tokenizer, delta.logprobs, self._body.logprobs, offset)
        self._offsets[delta.index] += sum(map(len, reply.tokens))
        return reply.model_dump()

    def _no_usage_yet(self) -> dict[str, None]:
        """OpenAI sends `usage: null` in every chunk but the last when usage was asked for."""
        return {"usage": None} if wants_usage(self._body) else {}

    def _usage_event(self) -> bytes:
        if not wants_usage(self._body):
            return b""
        return event({**self._head, "choices": [], "usage": self._generation.usage().model_dump()})


def wants_usage(body: GenerationRequest) -> bool:
    return body.stream_options is not None and body.stream_options.include_usage
