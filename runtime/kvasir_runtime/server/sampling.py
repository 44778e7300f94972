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
        n=body.n or 1,
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
    for field, is_asked in _UNSUPPORTED.items():
        if getattr(body, field, None) is not None and is_asked(body):
            raise bad_request(f"{field} is not supported yet: leave it out", field, code="unsupported_parameter")


def _is_set(_: GenerationRequest) -> bool:
    return True


def _wants_structural_tag(body: GenerationRequest) -> bool:
    return body.structured_outputs is not None and body.structured_outputs.structural_tag is not None


def _wants_best_of(body: GenerationRequest) -> bool:
    return isinstance(body, CompletionRequest) and body.best_of != (body.n or 1)


def _wants_suffix(body: GenerationRequest) -> bool:
    return isinstance(body, CompletionRequest) and bool(body.suffix)


def _wants_continuation(body: GenerationRequest) -> bool:
    return isinstance(body, ChatCompletionRequest) and body.continue_final_message


_UNSUPPORTED: dict[str, Callable[[GenerationRequest], bool]] = {
    "structured_outputs": _wants_structural_tag,
    "functions": _is_set,
    "best_of": _wants_best_of,
    "suffix": _wants_suffix,
    "continue_final_message": _wants_continuation,
    "chat_template": _is_set,
}


def _num_logprobs(body: CompletionRequest | ChatCompletionRequest) -> int | None:
    if isinstance(body, CompletionRequest):
        return body.logprobs
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_request("top_logprobs needs logprobs to be true", "top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None


def _num_prompt_logprobs(body: CompletionRequest | ChatCompletionRequest) -> int | None:
    if isinstance(body, CompletionRequest) and body.echo and body.logprobs is not None:
        return max(body.logprobs, body.prompt_logprobs or 0)
    return body.prompt_logprobs


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)
