"""A request's sampling fields, filled up with the model's defaults. Pure."""

from collections.abc import Callable
from http import HTTPStatus

from kvasir_runtime.model_files import GenerationDefaults
from kvasir_runtime.sampling_params import SamplingParams
from kvasir_runtime.server.errors import ApiError, bad_request
from kvasir_runtime.server.protocol import ChatCompletionRequest, CompletionRequest, GenerationRequest
from kvasir_runtime.structured.constraint import Constraint

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default of max_tokens for /v1/completions."""


def sampling_params(
    body: CompletionRequest | ChatCompletionRequest,
    defaults: GenerationDefaults,
    room: int,
    constraint: Constraint | None = None,
) -> SamplingParams:
    """How to sample for `body`; `room` is how many tokens fit behind the longest prompt. Raises ApiError (400)."""
    max_tokens = output_limit(body, defaults, room)
    check_min_tokens(body.min_tokens, max_tokens)
    return SamplingParams(
        n=candidates(body),
        max_tokens=max_tokens,
        min_tokens=body.min_tokens,
        temperature=_first(body.temperature, defaults.temperature, 1.0),
        top_p=_first(body.top_p, defaults.top_p, 1.0),
        top_k=max(0, int(_first(body.top_k, defaults.top_k, 0))),
        min_p=_first(body.min_p, defaults.min_p, 0.0),
        repetition_penalty=_first(body.repetition_penalty, defaults.repetition_penalty, 1.0),
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=body.logit_bias or {},
        seed=body.seed,
        stop=stop_strings(body.stop),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=body.ignore_eos,
        logprobs=_num_logprobs(body),
        prompt_logprobs=_num_prompt_logprobs(body),
        constraint=constraint,
    )


def output_limit(body: CompletionRequest | ChatCompletionRequest, defaults: GenerationDefaults, room: int) -> int:
    """max_tokens as asked; without it 16 for completions and the rest of the context for chat. At most `room`."""
    if isinstance(body, ChatCompletionRequest):
        asked, fallback = body.max_completion_tokens or body.max_tokens, defaults.max_new_tokens or room
    else:
        asked, fallback = body.max_tokens, defaults.max_new_tokens or DEFAULT_COMPLETION_TOKENS
    if asked is not None and asked > room:
        field = "max_tokens" if asked == body.max_tokens else "max_completion_tokens"
        raise context_length_exceeded(f"{field} must be at most {room} after this prompt, got {asked}", field)
    return asked or min(fallback, room)


def context_length_exceeded(message: str, param: str) -> ApiError:
    return ApiError(HTTPStatus.BAD_REQUEST, message, param=param, code="context_length_exceeded")


def check_min_tokens(min_tokens: int, max_tokens: int) -> None:
    if min_tokens > max_tokens:
        raise bad_request(f"min_tokens must be at most max_tokens ({max_tokens}), got {min_tokens}", "min_tokens")


def stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    if isinstance(stop, str):
        return (stop,) if stop else ()
    return tuple(stop or ())


def refuse_unsupported(body: GenerationRequest) -> None:
    """Raise ApiError (400) for fields that would change the answer and that this version does not honour."""
    for field, (is_asked, instead) in _UNSUPPORTED.items():
        if getattr(body, field, None) is not None and is_asked(body):
            raise bad_request(f"{field} is not supported: {instead}", field, code="unsupported_parameter")


def _is_set(_: GenerationRequest) -> bool:
    return True


def _wants_structural_tag(body: GenerationRequest) -> bool:
    return body.structured_outputs is not None and body.structured_outputs.structural_tag is not None


def _wants_suffix(body: GenerationRequest) -> bool:
    return isinstance(body, CompletionRequest) and bool(body.suffix)


_UNSUPPORTED: dict[str, tuple[Callable[[GenerationRequest], bool], str]] = {
    "structured_outputs": (_wants_structural_tag, "leave structural_tag out, or write a grammar"),
    "functions": (_is_set, "send tools, which took their place"),
    "suffix": (_wants_suffix, "leave it out, or write the model's own marks for it into the prompt"),
    "chat_template": (_is_set, "a template is a program; the server's own is set by --chat-template"),
}
"""Fields by name: when one asks for something, and what to do instead."""


def candidates(body: CompletionRequest | ChatCompletionRequest) -> int:
    """How many continuations of each prompt are computed; raises ApiError (400) where that is not `n` or more."""
    wanted = body.n or 1
    if not isinstance(body, CompletionRequest) or body.best_of is None:
        return wanted
    if body.best_of < wanted:
        raise bad_request(f"best_of must be at least n ({wanted}), got {body.best_of}", "best_of", "invalid_value")
    if body.best_of > wanted and body.stream:
        msg = f"best_of must be n ({wanted}) in a stream, as the best is known at the end, got {body.best_of}"
        raise bad_request(msg, "best_of", "invalid_value")
    return body.best_of


def _num_logprobs(body: CompletionRequest | ChatCompletionRequest) -> int | None:
    if isinstance(body, CompletionRequest):
        chooses = body.best_of is not None and body.best_of > (body.n or 1)
        return 0 if body.logprobs is None and chooses else body.logprobs
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_request("top_logprobs needs logprobs to be true", "top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None


def _num_prompt_logprobs(body: CompletionRequest | ChatCompletionRequest) -> int | None:
    if isinstance(body, CompletionRequest) and body.echo and body.logprobs is not None:
        return max(body.logprobs, body.prompt_logprobs or 0)
    return body.prompt_logprobs


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)
