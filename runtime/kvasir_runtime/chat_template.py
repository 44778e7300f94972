"""Chat templates in a sandboxed jinja2, with the helpers that templates of published models use.

Source: https://huggingface.co/docs/transformers/chat_templating_writing
"""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class ChatTemplateError(ValueError):
    """The template refused the messages, or failed on them; the message is meant for the client."""


class _GenerationBlock(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's words for training; serving just renders them."""

    tags = {"generation"}  # noqa: RUF012 - declared this way by jinja2

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A compiled template. Rendering touches nothing but its arguments."""

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        """Compile `source`; raises ChatTemplateError with the line of a syntax error."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationBlock]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        self.source = source
        self._special_tokens = special_tokens
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            line = getattr(error, "lineno", None)
            raise ChatTemplateError(f"the chat template is invalid at line {line}: {error}") from None

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Render messages (role, content, …) to the prompt; raises ChatTemplateError.

        `variables` are what else the template may ask for; they do not replace messages or special tokens.
        """
        fixed = {**self._special_tokens, "messages": messages, "add_generation_prompt": add_generation_prompt}
        try:
            return self._template.render({**(variables or {}), **fixed})
        except ChatTemplateError:
            raise
        except Exception as error:
            # A template is a program: whatever it raises on these messages is the client's to know.
            raise ChatTemplateError(f"the chat template failed on these messages: {error}") from error


def _raise_exception(message: str) -> NoReturn:
    raise ChatTemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)  # noqa: DTZ005 - templates want the local date


def _to_json(value: Any, *, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None) -> str:
    # jinja2's own filter escapes <, > and &, which models were not trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators)
