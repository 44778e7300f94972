"""The formats in which the whole answer is calls or text: Llama 3's JSON, and calls as Python writes them."""

import ast
import json
from collections.abc import Generator
from typing import Any, Final

from kvasir_runtime.server.tools.events import Arguments
from kvasir_runtime.server.tools.reader import END, CallReader, Char, NoCallError, Steps

PYTHON_TAG: Final = "<|python_tag|>"
_JSON_NAMES: Final = {"true": True, "false": False, "null": None}
_CLOSING: Final = {"(": ")", "[": "]", "{": "}"}


class Llama3Reader(CallReader):
    """`{"name": …, "parameters": {…}}; {…}`, maybe behind `<|python_tag|>`."""

    def _read(self) -> Steps:
        try:
            char = yield from self._skip_space()
            if char == "<":
                yield from self._expect(PYTHON_TAG, char)
                char = yield from self._skip_space()
            yield from self._call(char)
            while (char := (yield from self._skip_space())) != END:
                if char in (";", ","):
                    char = yield from self._skip_space()
                yield from self._call(char)
        except NoCallError:
            self._say_unread()


class PythonicReader(CallReader):
    """`[name(argument=value, …), …]`. A call is told when it is complete."""

    def _read(self) -> Steps:
        try:
            char = yield from self._skip_space()
            yield from self._expect("[", char)
            char = ","
            while char == ",":
                yield from self._python_call((yield from self._skip_space()))
                char = yield from self._skip_space()
            yield from self._expect("]", char)
        except NoCallError:
            self._say_unread()

    def _python_call(self, first: str) -> Steps:
        name, char = "", first
        while char not in ("(", END):
            name += char
            char = yield from self._next()
        if char == END:
            raise NoCallError
        arguments = python_arguments((yield from self._until_closed()))
        self._begin(name.strip())
        self._events.append(Arguments(self._count - 1, json.dumps(arguments, ensure_ascii=False)))
        self._end_call(has_arguments=True)

    def _until_closed(self) -> Generator[None, str, str]:
        """What stands between a parenthesis that was read and the one that closes it."""
        parts: list[str] = []
        expected = [")"]
        while True:
            char = yield from self._next()
            parts.append(char)
            if char == END:
                raise NoCallError
            if char in ("'", '"'):
                parts.append((yield from self._quoted(char)))
            elif char in _CLOSING:
                expected.append(_CLOSING[char])
            elif char == expected[-1]:
                expected.pop()
                if not expected:
                    return "".join(parts[:-1])

    def _quoted(self, quote: str) -> Char:
        parts, escaped = [], False
        while True:
            char = yield from self._next()
            parts.append(char)
            if char == END:
                raise NoCallError
            if char == quote and not escaped:
                return "".join(parts)
            escaped = char == "\\" and not escaped


def python_arguments(source: str) -> dict[str, Any]:
    """Keyword arguments written as literals; raises NoCallError for anything else. Nothing is executed.

    >>> python_arguments("city='Oslo', days=[1, 2], metric=true")
    {'city': 'Oslo', 'days': [1, 2], 'metric': True}
    """
    try:
        call = ast.parse(f"f({source}\n)", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise NoCallError
        arguments = {
            keyword.arg or "": ast.literal_eval(_WithNames().visit(keyword.value)) for keyword in call.keywords
        }
        json.dumps(arguments)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise NoCallError from None
    if "" in arguments:
        raise NoCallError
    return arguments


class _WithNames(ast.NodeTransformer):
    """Reads JSON's `true`, `false` and `null` too."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(_JSON_NAMES[node.id]) if node.id in _JSON_NAMES else node
