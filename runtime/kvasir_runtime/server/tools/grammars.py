"""Grammars of tool calls, in llguidance's Lark: what a required or named call, or an answer of a form, must look like.

Source: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kvasir_runtime.server.tools.marked import HERMES_CLOSE, HERMES_OPEN, MISTRAL_ARGUMENTS, MISTRAL_MARKER
from kvasir_runtime.structured.constraint import Constraint
from kvasir_runtime.structured.grammar import json_options

MAX_CALLS: Final = 32
"""Calls in one answer that a grammar lets pass; without a bound a model may repeat one until its context is full."""

Literal = Callable[[str], str]
"""How a grammar writes a text: as a string, or as the special token that it is for this tokenizer."""


@dataclass(frozen=True)
class Function:
    """`schema` describes the arguments' object. `strict` schemas must be enforceable whole."""

    name: str
    schema: dict[str, Any]
    strict: bool = False


def quoted(text: str) -> str:
    """A text as a string of a grammar."""
    return json.dumps(text)


def hermes(functions: Sequence[Function], literal: Literal, *, parallel: bool) -> str:
    """Objects between markers, one a line."""
    line = quoted("\n")
    head = [f"calls: call{_more(line, parallel=parallel)}", f"call: {literal(HERMES_OPEN)} body"]
    return "\n".join([*head, f"body: {line} one {line} {literal(HERMES_CLOSE)}", *_objects(functions)])


def llama3(functions: Sequence[Function], literal: Literal, *, parallel: bool) -> str:
    """Objects with semicolons between them."""
    del literal
    more = _more(quoted("; "), parallel=parallel)
    return "\n".join([f"calls: call{more}", "call: one", *_objects(functions, key="parameters")])


def mistral(functions: Sequence[Function], literal: Literal, *, parallel: bool) -> str:
    """A list of objects behind a marker; with tokenizers that have a token for it, the newer form with [ARGS]."""
    marker, arguments = literal(MISTRAL_MARKER), literal(MISTRAL_ARGUMENTS)
    if arguments == quoted(MISTRAL_ARGUMENTS):
        more = _more(quoted(", "), parallel=parallel)
        head = [f"calls: {marker} body", f'body: "[" call{more} "]"', "call: one"]
        return "\n".join([*head, *_objects(functions)])
    named = [f"one_{n}: {quoted(function.name)} {arguments} arguments_{n}" for n, function in enumerate(functions)]
    head = [f"calls: call{_more('', parallel=parallel)}", f"call: {marker} body", "body: one", _one_of(functions)]
    return "\n".join([*head, *named, *_arguments(functions)])


def pythonic(functions: Sequence[Function], literal: Literal, *, parallel: bool) -> str:
    """A Python list of calls with keywords; the values are JSON, which the reader takes too."""
    del literal
    lines = [f'calls: "[" call{_more(quoted(", "), parallel=parallel)} "]"', "call: one", _one_of(functions)]
    for number, function in enumerate(functions):
        lines += [f'one_{number}: {quoted(function.name + "(")} keywords_{number}_0 ")"', *_keywords(number, function)]
    return "\n".join(lines)


def calls_or(calls: str, answer: Constraint | None) -> str:
    """The whole grammar: calls, or an answer that is JSON of a schema."""
    if answer is None:
        return f"start: calls\n{calls}"
    return f"start: calls | answer\nanswer: {embed_json(json.loads(answer.text), lenient=answer.lenient)}\n{calls}"


def calls_in_text(calls: str, marker: str, *, parallel: bool) -> str:
    """The whole grammar: any text, but after `marker` a call; `calls` says in `body` what follows it."""
    said = f"said: TEXT {marker}" if marker.startswith("<[") else f"said[lazy]: TEXT {marker}"
    start = f"start: (said body){{0,{MAX_CALLS}}} TEXT" if parallel else "start: TEXT | said body"
    return f"{start}\n{said}\nTEXT: /(.|\\n)*/\n{calls}"


def embed_json(schema: Any, *, lenient: bool) -> str:
    """A schema within a grammar; `$ref` counts from the schema's own root. Raises ValueError for what is no schema."""
    if schema is False or not isinstance(schema, dict | bool):
        raise ValueError(f"{schema!r:.40} allows nothing")
    options = json_options(Constraint.whitespace, lenient=lenient)
    return "%json " + json.dumps({**_as_dict(schema), "x-guidance": options})


def _objects(functions: Sequence[Function], key: str = "arguments") -> list[str]:
    objects = []
    for number, function in enumerate(functions):
        head = f'{{"name": {quoted(function.name)}, "{key}": '
        objects.append(f'one_{number}: {quoted(head)} arguments_{number} "}}"')
    return [_one_of(functions), *objects, *_arguments(functions)]


def _one_of(functions: Sequence[Function]) -> str:
    return "one: " + " | ".join(f"one_{number}" for number in range(len(functions)))


def _arguments(functions: Sequence[Function]) -> list[str]:
    return [
        f"arguments_{number}: {embed_json(function.schema, lenient=not function.strict)}"
        for number, function in enumerate(functions)
    ]


def _more(separator: str, *, parallel: bool) -> str:
    return f" ({separator} call){{0,{MAX_CALLS - 1}}}" if parallel else ""


def _keywords(number: int, function: Function) -> list[str]:
    """Rules for keywords in the schema's order: `a` before the first one given, `b` behind one.

    The last rules are empty; a property that is required has no way round it.
    """
    required = function.schema.get("required")
    needed = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
    properties = {**{name: {} for name in needed}, **_as_dict(function.schema.get("properties"))}
    shared = {key: function.schema[key] for key in ("$defs", "definitions") if key in function.schema}
    lines = []
    for place, (name, schema) in enumerate(properties.items()):
        here, after = f"{number}_{place}", f"{number}_{place + 1}"
        skip = "" if name in needed else " | {kind}_" + after
        given = f"{quoted(name + '=')} value_{here} more_{after}"
        lines += [
            f"keywords_{here}: {given}{skip.format(kind='keywords')}",
            f"more_{here}: {quoted(', ')} {given}{skip.format(kind='more')}",
            f"value_{here}: {embed_json({**shared, **_as_dict(schema)}, lenient=not function.strict)}",
        ]
    end = f"{number}_{len(properties)}"
    return [*lines, f'keywords_{end}: ""', f'more_{end}: ""']


def _as_dict(schema: Any) -> dict[str, Any]:
    return schema if isinstance(schema, dict) else {}
