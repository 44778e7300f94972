"""What clients send: OpenAI's fields, and vLLM's additions under vLLM's names.

Unknown fields are accepted and ignored, as OpenAI's own libraries send new ones all the time. Known fields with values
out of bounds are refused; so are known fields that would change the answer and are not supported.

Source: https://platform.openai.com/docs/api-reference
"""

from typing import Annotated, Any, Literal

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

from kvasir_runtime.contract.memory import MAX_LOGIT_BIASES


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
MAX_TOOLS = 512
"""Tools in one request; OpenAI allows 128."""


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


class JsonSchemaFormat(_Body):
    """`strict`: refuse schemas with keywords that cannot be enforced, instead of ignoring these."""

    name: Text | None = None
    description: Text | None = None
    definition: dict[str, Any] | bool | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(_Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


Choices = Annotated[list[Text], Field(min_length=1)]
Schema = Annotated[dict[str, Any] | bool | Text, _one_of("a JSON schema, as an object or as text")]


class StructuredOutputs(_Body):
    """vLLM's way to ask for a constraint; one of the first five."""

    definition: Schema | None = Field(default=None, alias="json")
    regex: Text | None = None
    choice: Choices | None = None
    grammar: Text | None = Field(default=None, description="in Lark's notation, or GBNF")
    json_object: bool | None = None
    disable_any_whitespace: bool = False
    whitespace_pattern: Text | None = Field(default=None, description="between the tokens of JSON")
    structural_tag: Any = None


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
    logit_bias: dict[TokenId, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        default=None, max_length=MAX_LOGIT_BIASES
    )
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
    timeout_s: float | None = Field(
        default=None,
        gt=0,
        le=86_400,
        description="seconds for the whole answer: refused at once where that cannot be met, else cut then",
    )
    cache_salt: str = Field(
        default="", max_length=256, description="requests share cached prefixes only under equal salts"
    )

    response_format: ResponseFormat | None = None
    guided_json: Schema | None = None
    guided_regex: Text | None = None
    guided_choice: Choices | None = None
    guided_grammar: Text | None = Field(default=None, description="in Lark's notation, or GBNF")
    guided_whitespace_pattern: Text | None = Field(default=None, description="between the tokens of JSON")
    structured_outputs: StructuredOutputs | None = None


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
    best_of: int | None = Field(
        default=None, ge=1, le=128, description="continuations computed, of which the n most likely by token are sent"
    )
    suffix: str | None = None
    add_special_tokens: bool = True


class _Open(BaseModel):
    """What else it carries is handed to the chat template."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class CalledFunction(_Open):
    name: Text
    arguments: Annotated[Text | dict[str, Any] | None, _one_of("a text of JSON or an object")] = None


class ToolCall(_Open):
    """A call in a turn of the assistant."""

    id: Text | None = None
    type: Text = "function"
    function: CalledFunction


class FunctionDefinition(_Open):
    name: str = Field(min_length=1, max_length=128, pattern=r"^[a-zA-Z0-9_.:/-]+$")
    description: Text | None = None
    parameters: dict[str, Any] | None = Field(default=None, description="JSON schema of the arguments' object")
    strict: bool | None = Field(default=None, description="refuse schemas that cannot be enforced whole")


class Tool(_Open):
    type: Literal["function"] = "function"
    function: FunctionDefinition


class NamedFunction(_Body):
    name: Text


class NamedToolChoice(_Body):
    type: Literal["function"] = "function"
    function: NamedFunction


class ContentPart(_Body):
    type: str
    text: Text | None = None


class ChatMessage(_Open):
    """One turn. What else it carries (name, tool_call_id, …) is handed to the chat template."""

    role: str = Field(min_length=1)
    content: Annotated[
        Text | list[ContentPart] | None, _one_of("a string or a list of parts such as {'type': 'text', 'text': …}")
    ] = None
    tool_calls: list[ToolCall] | None = None


class ChatCompletionRequest(GenerationRequest):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    add_generation_prompt: bool | None = Field(default=None, description="default: unless continue_final_message")
    continue_final_message: bool = Field(default=False, description="go on where the assistant's last turn ends")
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[Tool] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_choice: Annotated[
        Literal["none", "auto", "required"] | NamedToolChoice | None,
        _one_of("'none', 'auto', 'required' or {'type': 'function', 'function': {'name': …}}"),
    ] = None
    parallel_tool_calls: bool | None = Field(default=None, description="whether one answer may hold several calls")
    functions: list[dict[str, Any]] | None = None


class TokenizeRequest(_Body):
    """`POST /tokenize`: a prompt, or a conversation."""

    model: str | None = None
    prompt: Text | None = None
    messages: list[ChatMessage] | None = Field(default=None, min_length=1)
    add_special_tokens: bool | None = Field(default=None, description="default: true for a prompt, false for messages")
    add_generation_prompt: bool | None = Field(default=None, description="default: unless continue_final_message")
    continue_final_message: bool = Field(default=False, description="end where the assistant's last turn ends")
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[Tool] | None = Field(default=None, max_length=MAX_TOOLS)
    return_token_strs: bool = False


class DetokenizeRequest(_Body):
    """`POST /detokenize`."""

    model: str | None = None
    tokens: list[TokenId]
