"""The formats in which a marker announces calls: Hermes (Qwen too) and Mistral."""

from typing import Final

from kvasir_runtime.server.tools.reader import END, CallReader, Char, NoCallError, Steps

HERMES_OPEN: Final = "<tool_call>"
HERMES_CLOSE: Final = "</tool_call>"
MISTRAL_MARKER: Final = "[TOOL_CALLS]"
MISTRAL_ARGUMENTS: Final = "[ARGS]"


class HermesReader(CallReader):
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`, between them text."""

    def _read(self) -> Steps:
        while (yield from self._text_until(HERMES_OPEN)):
            try:
                yield from self._call((yield from self._skip_space()))
                yield from self._expect(HERMES_CLOSE, (yield from self._skip_space()))
            except NoCallError:
                self._say_unread()
            self._unread.clear()


class MistralReader(CallReader):
    """`[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`, and from version 11 on `[TOOL_CALLS]name[ARGS]{…}`."""

    def _read(self) -> Steps:
        while (yield from self._text_until(MISTRAL_MARKER)):
            try:
                first = yield from self._skip_space()
                yield from self._list() if first == "[" else self._named(first)
            except NoCallError:
                self._say_unread()
            self._unread.clear()

    def _list(self) -> Steps:
        char = ","
        while char == ",":
            yield from self._call((yield from self._skip_space()))
            char = yield from self._skip_space()
        if char not in ("]", END):
            raise NoCallError

    def _named(self, first: str) -> Steps:
        name, char = "", first
        while char not in ("{", "[", END):
            name += char
            char = yield from self._next()
        if char == "[":
            char = yield from self._tags()
        if char != "{":
            raise NoCallError
        self._begin(name.strip())
        yield from self._container("{", live=True)
        self._end_call(has_arguments=True)

    def _tags(self) -> Char:
        """Read `[CALL_ID]…` and `[ARGS]`, whose bracket was read; returns the character after them."""
        tag = "["
        while not tag.endswith(MISTRAL_ARGUMENTS):
            char = yield from self._next()
            if char in ("{", END):
                raise NoCallError
            tag += char
        return (yield from self._skip_space())
