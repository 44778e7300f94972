"""What clients send: OpenAI's fields, and vLLM's additions under vLLM's names.

Unknown fields are accepted and ignored, as OpenAI's own libraries send new ones all the time. Known fields with values
out of bounds are refused; so are known fields that would change the answer and are not supported yet.

Source: https://platform.openai.com/docs/api-reference
"""

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError


def _encodable(text: str) -> str:
    """JSON can write half a surrogate pair, which is no character and has no bytes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        msg = f"must be Unicode text, got a lone surrogate at position {error.start}"
        raise PydanticCustomError("not_text", msg) from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]
TokenId = Annotated[int, Field(ge=0)]
MAX_PROMPTS = 2048
"""Prompts in one request, as OpenAI allows."""


def _one_of(what: str) -> WrapValidator:
    """One error for a field of several types, instead of one for each type it is not."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError("one_of", "must be {what}", {"what": what}) from None

    return WrapValidator(check)


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, protected_namespaces=())


class StreamOptions(_Body):
    include_usage: bool = False


class ResponseFormat(_Body):
    type: str


class GenerationRequest(_Body):
    """What completions and chat completions have in common. None: the model's default, else the API's."""

    model: str | None = Field(default=None, description="a name from /v1/models; default: the served model")
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None

    max_tokens: int | None = Field(default=None, ge=1)
    min_tokens: int = Field(default=0, ge=0)
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, description="0 or -1: all tokens")
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=100)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[TokenId, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    n: int | None = Field(default=None, ge=1, le=128)
    stop: Annotated[
        Text | Annotated[list[Annotated[Text, Field(min_length=1)]], Field(max_length=16)] | None,
        _one_of("a string or a list of at most 16 non-empty strings"),
    ] = None
    stop_token_ids: list[TokenId] | None = Field(default=None, max_length=1024)
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    prompt_logprobs: int | None = Field(default=None, ge=0, le=20)
    return_token_ids: bool = Field(default=False, description="add token_ids to each choice")
    priority: int = Field(
        default=0, ge=-(2**31), lt=2**31, description="lower runs first, with --scheduling-policy priority"
    )
    cache_salt: str = Field(
        default="", max_length=256, description="requests share cached prefixes only under equal salts"
    )

    response_format: ResponseFormat | None = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    structured_outputs: Any = None


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`."""

    prompt: Annotated[
        Text
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=MAX_PROMPTS)],
        _one_of(f"a string, a list of token ids of at least 0, or a list of at most {MAX_PROMPTS} such prompts"),
    ] = Field(description="text or token ids, one or several")
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool = False
    best_of: int | None = Field(default=None, ge=1)
    suffix: str | None = None
    add_special_tokens: bool = True


class ContentPart(_Body):
    type: str
    text: Text | None = None


class ChatMessage(BaseModel):
    """One turn. What else it carries (name, tool_calls, …) is handed to the chat template."""

    model_config = ConfigDict(extra="allow")

    role: str = Field(min_length=1)
    content: Annotated[
        Text | list[ContentPart] | None, _one_of("a string or a list of parts such as {'type': 'text', 'text': …}")
    ] = None


class ChatCompletionRequest(GenerationRequest):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    functions: list[dict[str, Any]] | None = None


class TokenizeRequest(_Body):
    """`POST /tokenize`: a prompt, or a conversation."""

    model: str | None = None
    prompt: Text | None = None
    messages: list[ChatMessage] | None = Field(default=None, min_length=1)
    add_special_tokens: bool | None = Field(default=None, description="default: true for a prompt, false for messages")
    add_generation_prompt: bool = True
    return_token_strs: bool = False


class DetokenizeRequest(_Body):
    """`POST /detokenize`."""

    model: str | None = None
    tokens: list[TokenId]
