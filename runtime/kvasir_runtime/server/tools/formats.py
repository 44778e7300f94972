"""The formats of tool calls that are known, by vLLM's names of their parsers, and which one a model uses."""

import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from kvasir_runtime.server.tools import grammars
from kvasir_runtime.server.tools.bare import PYTHON_TAG, Llama3Reader, PythonicReader
from kvasir_runtime.server.tools.grammars import Function, Literal
from kvasir_runtime.server.tools.marked import (
    HERMES_CLOSE,
    HERMES_OPEN,
    MISTRAL_ARGUMENTS,
    MISTRAL_MARKER,
    HermesReader,
    MistralReader,
)
from kvasir_runtime.server.tools.reader import CallReader

Call = tuple[str, Any]
"""A function's name and its arguments."""


class MakeGrammar(Protocol):
    """Rules from `calls` on; `parallel` allows more than one call."""

    def __call__(self, functions: Sequence[Function], literal: Literal, /, *, parallel: bool) -> str: ...


@dataclass(frozen=True)
class ToolFormat:
    """`write` is what a model would say.

    `marker` announces calls within a text; `markers` may be special tokens; `short_ids` have nine letters and digits.
    """

    name: str
    reader: Callable[[Collection[str]], CallReader]
    grammar: MakeGrammar
    write: Callable[[Sequence[Call]], str]
    marker: str = ""
    markers: tuple[str, ...] = ()
    short_ids: bool = False


def _write_hermes(calls: Sequence[Call]) -> str:
    return "\n".join(f"{HERMES_OPEN}\n{_object(call)}\n{HERMES_CLOSE}" for call in calls)


def _write_llama3(calls: Sequence[Call]) -> str:
    return "; ".join(_object(call, "parameters") for call in calls)


def _write_mistral(calls: Sequence[Call]) -> str:
    return f"{MISTRAL_MARKER}[{', '.join(map(_object, calls))}]"


def _write_pythonic(calls: Sequence[Call]) -> str:
    return f"[{', '.join(f'{name}({_keywords(arguments)})' for name, arguments in calls)}]"


def _object(call: Call, key: str = "arguments") -> str:
    return json.dumps({"name": call[0], key: call[1]}, ensure_ascii=False)


def _keywords(arguments: Any) -> str:
    given = arguments.items() if isinstance(arguments, dict) else ()
    return ", ".join(f"{name}={value!r}" for name, value in given)


FORMATS: Final = {
    tool_format.name: tool_format
    for tool_format in (
        ToolFormat(
            "hermes",
            HermesReader,
            grammars.hermes,
            _write_hermes,
            HERMES_OPEN,
            (HERMES_OPEN, HERMES_CLOSE),
        ),
        ToolFormat("llama3_json", Llama3Reader, grammars.llama3, _write_llama3, markers=(PYTHON_TAG,)),
        ToolFormat(
            "mistral",
            MistralReader,
            grammars.mistral,
            _write_mistral,
            MISTRAL_MARKER,
            (MISTRAL_MARKER, MISTRAL_ARGUMENTS),
            short_ids=True,
        ),
        ToolFormat("pythonic", PythonicReader, grammars.pythonic, _write_pythonic),
    )
}

_MARKERS: Final = (
    ("<function=", None),  # Qwen3 Coder's XML
    (HERMES_OPEN, "hermes"),
    (MISTRAL_MARKER, "mistral"),
    ("[func_name1(", "pythonic"),
    ("<|python_tag|>", "llama3_json"),
    ("ipython", "llama3_json"),
)
"""Words of a chat template, and the format of the models that have it; the first found counts."""

_TOOLS: Final = re.compile(r"\btools\b")


def knows_tools(template: str) -> bool:
    """Whether a chat template shows the model its tools."""
    return _TOOLS.search(template) is not None


def detect(template: str) -> ToolFormat | None:
    """The format that a chat template teaches; Hermes where it knows of no tools; None for one we do not know."""
    if not knows_tools(template):
        return FORMATS["hermes"]
    name = next((name for marker, name in _MARKERS if marker in template), None)
    return None if name is None else FORMATS[name]
