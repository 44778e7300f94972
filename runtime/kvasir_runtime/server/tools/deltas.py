"""Tool calls in the shapes of OpenAI's API, whole and in pieces."""

from dataclasses import dataclass
from typing import Any

from kvasir_runtime.server.tools.events import Arguments, CallBegun, Event, Said
from kvasir_runtime.server.tools.use import ToolUse


@dataclass(frozen=True)
class ToolDelta:
    """What a piece of text meant: words, and pieces of calls as they stand in a chunk."""

    content: str
    calls: list[dict[str, Any]]


@dataclass
class ChoiceCalls:
    """The calls of one choice while its text comes."""

    use: ToolUse
    called: bool = False

    def __post_init__(self) -> None:
        self._reader = self.use.reader()

    def push(self, text: str, *, last: bool) -> ToolDelta:
        """What `text` made certain; `last`: nothing follows."""
        events = self._reader.push(text)
        if last:
            events += self._reader.finish()
        return self._shape(events)

    def _shape(self, events: list[Event]) -> ToolDelta:
        content: list[str] = []
        calls: dict[int, dict[str, Any]] = {}
        for event in events:
            match event:
                case Said(text):
                    content.append(text)
                case CallBegun(index, name) if self._counts(index):
                    self.called = True
                    function = {"name": name, "arguments": ""}
                    calls[index] = {"index": index, "id": self.use.call_id(), "type": "function", "function": function}
                case Arguments(index, text) if self._counts(index):
                    call = calls.setdefault(index, {"index": index, "function": {"arguments": ""}})
                    call["function"]["arguments"] += text
        return ToolDelta("".join(content), list(calls.values()))

    def _counts(self, index: int) -> bool:
        return self.use.parallel or index == 0
