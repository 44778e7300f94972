"""Reads calls from a text that comes in pieces, and says at once what is certain.

Each format is a generator that is sent one character after the other, `""` at the end, so that it reads like a parser
of a whole text. What turns out to be no call is text after all.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Generator, Iterable
from typing import Final

from kvasir_runtime.engine.detokenizer import StopStrings
from kvasir_runtime.server.tools.events import Arguments, CallBegun, Event, Said

END: Final = ""
ARGUMENT_KEYS: Final = ("arguments", "parameters")

Steps = Generator[None, str, None]
Char = Generator[None, str, str]
Text = Generator[None, str, str]
Value = Generator[None, str, tuple[str, str]]


class NoCallError(Exception):
    """What was read since the marker is no call."""


class CallReader(ABC):
    """`names` are the functions that there are: calls of others are text."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._events: list[Event] = []
        self._count = 0
        self._in_call = False
        self._space = ""
        self._unread: list[str] = []
        """What may still turn out to be text."""
        self._steps = self._run()
        next(self._steps)

    def push(self, text: str) -> list[Event]:
        """What became certain by `text`."""
        for char in text:
            self._steps.send(char)
        return self._drain()

    def finish(self) -> list[Event]:
        """The rest: the text has ended, maybe inside a call. Nothing may be pushed any more."""
        self._steps.send(END)
        if self._count == 0 and self._space:
            self._events.append(Said(self._space))
        return self._drain()

    @abstractmethod
    def _read(self) -> Steps:
        """Read the whole text; may end early, then the rest is text."""

    def _run(self) -> Steps:
        yield from self._read()
        while True:
            self._say((yield))

    def _drain(self) -> list[Event]:
        events, self._events = self._events, []
        return merge(events)

    # Text

    def _say(self, text: str) -> None:
        """Pass text on; white space only when more follows, as models put some around calls."""
        text = self._space + text
        shown = text.rstrip()
        self._space = text[len(shown) :]
        if shown:
            self._events.append(Said(shown))

    def _say_unread(self) -> None:
        text, self._unread = "".join(self._unread), []
        if self._in_call:  # its name is out: a call that breaks off is not told as text as well
            self._in_call = False
        else:
            self._say(text)

    def _text_until(self, marker: str) -> Generator[None, str, bool]:
        """Pass text on up to `marker`; whether it came at all."""
        stops = StopStrings((marker,))
        while (char := (yield)) != END:
            self._say(stops.push(char))
            if stops.matched is not None:
                self._unread = [marker]
                return True
        self._say(stops.flush())
        return False

    # Characters

    def _next(self) -> Char:
        char = yield
        self._unread.append(char)
        return char

    def _skip_space(self) -> Char:
        while (char := (yield from self._next())) and char.isspace():
            continue
        return char

    def _expect(self, wanted: str, char: str | None = None) -> Steps:
        """Read exactly `wanted`; its first character may have been read already."""
        for expected in wanted:
            if (char if char is not None else (yield from self._next())) != expected:
                raise NoCallError
            char = None

    # JSON

    def _call(self, first: str) -> Steps:
        """An object that names a function and its arguments, in any order; `first` is its first character."""
        if first != "{":
            raise NoCallError
        name: str | None = None
        arguments: str | None = None
        after = ","
        while after == ",":
            key = yield from self._key()
            char = yield from self._skip_space()
            if key == "name":
                raw, after = yield from self._value(char)
                name = self._begin(_text_of(raw))
                if arguments is not None:
                    self._argue(arguments)
            elif key in ARGUMENT_KEYS and arguments is None:
                live = name is not None and char in "{["
                arguments, after = yield from self._value(char, live=live)
                if name is not None and not live:
                    self._argue(arguments)
            else:
                _, after = yield from self._value(char)
            after = (yield from self._skip_space()) if after.isspace() else after
        if after != "}" or name is None:
            raise NoCallError
        self._end_call(has_arguments=arguments is not None)

    def _begin(self, name: str) -> str:
        if name not in self._names or self._in_call:
            raise NoCallError
        self._events.append(CallBegun(self._count, name))
        self._in_call = True
        self._space = ""
        self._count += 1
        return name

    def _argue(self, raw: str) -> None:
        """All arguments at once; some models give them as a text of JSON."""
        text = _text_of(raw) if raw.startswith('"') else raw
        self._events.append(Arguments(self._count - 1, "{}" if text in ("null", "") else text))

    def _end_call(self, *, has_arguments: bool) -> None:
        if not has_arguments:
            self._events.append(Arguments(self._count - 1, "{}"))
        self._in_call = False
        self._unread.clear()

    def _key(self) -> Text:
        if (yield from self._skip_space()) != '"':
            raise NoCallError
        key = _text_of((yield from self._string()))
        if (yield from self._skip_space()) != ":":
            raise NoCallError
        return key

    def _value(self, first: str, *, live: bool = False) -> Value:
        """A value's text and the character after it; `live` arguments are told as they come."""
        if first == '"':
            return (yield from self._string()), (yield from self._next())
        if first not in ("{", "["):
            return (yield from self._scalar(first))
        return (yield from self._container(first, live=live)), (yield from self._next())

    def _container(self, first: str, *, live: bool) -> Text:
        """The rest of an object or a list."""
        if live:
            self._events.append(Arguments(self._count - 1, first))
        parts, depth, inside, escaped = [first], 1, False, False
        while depth:
            char = yield from self._next()
            if char == END:
                raise NoCallError
            parts.append(char)
            if live:
                self._events.append(Arguments(self._count - 1, char))
            if inside:
                inside, escaped = escaped or char != '"', not escaped and char == "\\"
            else:
                inside = char == '"'
                depth += (char in "{[") - (char in "}]")
        return "".join(parts)

    def _string(self) -> Text:
        """The rest of a string whose opening quote was read, with both quotes."""
        parts, escaped = ['"'], False
        while True:
            char = yield from self._next()
            if char == END:
                raise NoCallError
            parts.append(char)
            if char == '"' and not escaped:
                return "".join(parts)
            escaped = char == "\\" and not escaped

    def _scalar(self, first: str) -> Value:
        parts, char = [], first
        while char and char not in ",}] \t\r\n":
            parts.append(char)
            char = yield from self._next()
        if not parts or not char:
            raise NoCallError
        return "".join(parts), char


def merge(events: Iterable[Event]) -> list[Event]:
    """The same with adjacent pieces of one text joined."""
    merged: list[Event] = []
    for event in events:
        match (merged[-1] if merged else None), event:
            case Said(before), Said(text):
                merged[-1] = Said(before + text)
            case Arguments(index, before), Arguments(same, text) if index == same:
                merged[-1] = Arguments(index, before + text)
            case _:
                merged.append(event)
    return merged


def _text_of(raw: str) -> str:
    try:
        value = json.loads(raw, strict=False)
    except ValueError:
        raise NoCallError from None
    if not isinstance(value, str):
        raise NoCallError
    return value
