"""What a request says about tools, as one value. Pure."""

import json
import secrets
import string
from dataclasses import dataclass
from typing import Any, Final, Literal

from kvasir_runtime.server.constraints import check_length
from kvasir_runtime.server.errors import bad_request
from kvasir_runtime.server.protocol import ChatCompletionRequest, NamedToolChoice, Tool
from kvasir_runtime.server.tools import grammars
from kvasir_runtime.server.tools.formats import FORMATS, ToolFormat, detect
from kvasir_runtime.server.tools.grammars import Function
from kvasir_runtime.server.tools.reader import CallReader
from kvasir_runtime.structured.constraint import Constraint
from kvasir_runtime.tokenizer import Tokenizer

_ID_LETTERS: Final = string.ascii_letters + string.digits
_NO_ARGUMENTS: Final = {"type": "object", "properties": {}, "additionalProperties": False}
_SAY_THEIR_TYPE: Final = frozenset({"type", "$ref", "anyOf", "allOf", "oneOf", "enum", "const"})


@dataclass(frozen=True)
class ToolUse:
    """Functions that the model may (`auto`) or must call; `named` leaves it one of them, and one call."""

    tool_format: ToolFormat
    functions: tuple[Function, ...]
    choice: Literal["auto", "required", "named"]
    parallel: bool

    def reader(self) -> CallReader:
        return self.tool_format.reader({function.name for function in self.functions})

    def constraint(self, answer: Constraint | None, tokenizer: Tokenizer) -> Constraint | None:
        """What the output must match, given what an answer in words must; raises ApiError (400) for what conflicts."""
        strict = self.tool_format.marker and any(function.strict for function in self.functions)
        if self.choice == "auto" and answer is None and not strict:
            return None
        if answer is not None and (self.choice != "auto" or answer.kind != "json_schema"):
            raise bad_request(f"{answer.field} cannot be combined with these tools", answer.field, "invalid_value")

        def literal(text: str) -> str:
            token_id = tokenizer.special_token_id(text)
            return grammars.quoted(text) if token_id is None else f"<[{token_id}]>"

        calls = self.tool_format.grammar(self.functions, literal, parallel=self.parallel)
        try:
            if self.choice == "auto" and answer is None:
                grammar = grammars.calls_in_text(calls, literal(self.tool_format.marker), parallel=self.parallel)
            else:
                grammar = grammars.calls_or(calls, answer)
        except (ValueError, RecursionError) as error:
            field = "" if answer is None else answer.field
            raise bad_request(f"{field} must be a JSON schema: {error}", field, "invalid_value") from None
        constraint = Constraint("grammar", grammar, field="tools" if answer is None else answer.field)
        check_length(constraint)
        return constraint

    def shows_special_tokens(self, tokenizer: Tokenizer) -> bool:
        """Whether calls are marked by special tokens, so that the text must show them."""
        return any(tokenizer.special_token_id(marker) is not None for marker in self.tool_format.markers)

    def call_id(self) -> str:
        """An id for one call, as the model's template expects them."""
        if self.tool_format.short_ids:
            return "".join(secrets.choice(_ID_LETTERS) for _ in range(9))
        return f"call_{secrets.token_hex(12)}"

    def finish_reason(self, reason: str | None, *, called: bool) -> str | None:
        """As OpenAI has it: `tool_calls` where the model chose to call, `stop` where it was told which function."""
        return "tool_calls" if reason == "stop" and called and self.choice != "named" else reason


def tool_use(body: ChatCompletionRequest, tokenizer: Tokenizer, parser: str | None) -> ToolUse | None:
    """What `body` says; None without tools. `parser` is the flag's. Raises ApiError (400)."""
    choice = body.tool_choice
    if not body.tools:
        if choice not in (None, "none", "auto"):
            raise bad_request("tool_choice needs tools", "tool_choice", "invalid_value")
        return None
    functions = tuple(_function(tool) for tool in body.tools)
    _check_names(functions)
    if choice == "none":
        return None
    used = tool_format(tokenizer, parser)
    if isinstance(choice, NamedToolChoice):
        wanted = tuple(function for function in functions if function.name == choice.function.name)
        if not wanted:
            known = ", ".join(function.name for function in functions)
            msg = f"tool_choice.function.name must be one of {known}, got {choice.function.name!r}"
            raise bad_request(msg, "tool_choice.function.name", "invalid_value")
        return ToolUse(used, wanted, "named", parallel=False)
    how: Literal["auto", "required"] = "required" if choice == "required" else "auto"
    return ToolUse(used, functions, how, parallel=body.parallel_tool_calls is not False)


def _function(tool: Tool) -> Function:
    function = tool.function
    schema: dict[str, Any] = dict(function.parameters or _NO_ARGUMENTS)
    if not _SAY_THEIR_TYPE & schema.keys():
        schema["type"] = "object"
    try:
        json.dumps(schema)
    except RecursionError:
        raise bad_request("tools holds a schema that is nested too deeply", "tools", "invalid_value") from None
    return Function(function.name, schema, bool(function.strict))


def _check_names(functions: tuple[Function, ...]) -> None:
    seen: set[str] = set()
    for number, function in enumerate(functions):
        if function.name in seen:
            path = f"tools[{number}].function.name"
            raise bad_request(f"{path} must be unique, got {function.name!r} again", path, "invalid_value")
        seen.add(function.name)


def tool_format(tokenizer: Tokenizer, parser: str | None) -> ToolFormat:
    """The flag's format, else the one that the template tells; raises ApiError (400) when that is not known."""
    if parser is not None:
        return FORMATS[parser]
    found = detect(tokenizer.template_source)
    if found is None:
        known = ", ".join(FORMATS)
        msg = (
            f"tools cannot be used: this model writes calls in a format that is not known; --tool-call-parser: {known}"
        )
        raise bad_request(msg, "tools", "unsupported_parameter")
    return found
