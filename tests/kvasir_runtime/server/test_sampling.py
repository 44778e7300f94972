"""A request's sampling fields, filled up with the model's defaults."""

from typing import Any

import pytest

from kvasir_runtime.model_files import GenerationDefaults
from kvasir_runtime.sampling_params import SamplingParams
from kvasir_runtime.server.errors import ApiError
from kvasir_runtime.server.protocol import ChatCompletionRequest, CompletionRequest
from kvasir_runtime.server.sampling import sampling_params

NONE = GenerationDefaults()
MODEL = GenerationDefaults(temperature=0.6, top_p=0.9, top_k=20, min_p=0.1, repetition_penalty=1.1)
TURN = [{"role": "user", "content": "hi"}]


def complete(defaults: GenerationDefaults = NONE, room: int = 100, **fields: Any) -> SamplingParams:
    return sampling_params(CompletionRequest(prompt="x", **fields), defaults, room)


def chat(defaults: GenerationDefaults = NONE, room: int = 100, **fields: Any) -> SamplingParams:
    return sampling_params(ChatCompletionRequest.model_validate({"messages": TURN, **fields}), defaults, room)


def test_the_apis_defaults():
    """Without model defaults a request is sampled as OpenAI would."""
    assert complete() == SamplingParams(max_tokens=16)


def test_the_models_defaults_fill_what_is_not_said():
    """generation_config.json counts where the request is silent, 0 is not silence."""
    params = complete(MODEL)
    assert (params.temperature, params.top_p, params.top_k, params.min_p, params.repetition_penalty) == (
        *(0.6, 0.9, 20, 0.1, 1.1),
    )
    said = complete(MODEL, temperature=0, top_p=1, top_k=-1, min_p=0, repetition_penalty=1)
    assert said == SamplingParams(max_tokens=16, temperature=0)


@pytest.mark.parametrize(
    ("make", "fields", "defaults", "room", "expected"),
    [
        (complete, {}, NONE, 100, 16),
        (complete, {}, NONE, 5, 5),
        (complete, {}, GenerationDefaults(max_new_tokens=30), 100, 30),
        (complete, {"max_tokens": 100}, NONE, 100, 100),
        (chat, {}, NONE, 100, 100),
        (chat, {}, GenerationDefaults(max_new_tokens=30), 100, 30),
        (chat, {"max_tokens": 7}, NONE, 100, 7),
        (chat, {"max_tokens": 7, "max_completion_tokens": 9}, NONE, 100, 9),
    ],
)
def test_output_limit(make, fields, defaults, room, expected):
    """As asked; else the model's; else 16 for completions and the rest of the context for chat."""
    assert make(defaults, room, **fields).max_tokens == expected


@pytest.mark.parametrize(
    ("make", "field"), [(complete, "max_tokens"), (chat, "max_tokens"), (chat, "max_completion_tokens")]
)
def test_more_than_there_is_room_for(make, field):
    """The error names the field, the bound and the value, with OpenAI's code."""
    with pytest.raises(ApiError, match=f"{field} must be at most 100 after this prompt, got 101") as caught:
        make(**{field: 101})
    assert (caught.value.body.error.param, caught.value.body.error.code) == (field, "context_length_exceeded")


@pytest.mark.parametrize(
    ("stop", "expected"), [(None, ()), ("", ()), ("end", ("end",)), (["a", "b"], ("a", "b")), ([], ())]
)
def test_stop_strings(stop, expected):
    """One or several; an empty string stops nothing."""
    assert complete(stop=stop).stop == expected


def test_logprobs():
    """Completions count alternatives; chat switches them on and counts them apart; echo wants the prompt's too."""
    assert complete(logprobs=3).logprobs == 3
    assert complete(logprobs=0).logprobs == 0
    assert complete(logprobs=3, echo=True).prompt_logprobs == 3
    assert chat(logprobs=True).logprobs == 0
    assert chat(logprobs=True, top_logprobs=4).logprobs == 4
    assert chat(logprobs=False).logprobs is None
