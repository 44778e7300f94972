"""A conversation as the model's chat template reads it, tools and their results included."""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from kvasir_runtime.chat_template import ChatTemplateError
from kvasir_runtime.server.errors import bad_request
from kvasir_runtime.server.protocol import ChatMessage, Tool
from kvasir_runtime.server.tools.formats import FORMATS, ToolFormat, knows_tools
from kvasir_runtime.tokenizer import Tokenizer

Turn = dict[str, Any]

_END_MARK: Final = "KVASIR_CONTINUES_HERE "
"""Put behind the turn that is to be continued, to see where it ends: templates write turns' ends as they like."""


def render(
    tokenizer: Tokenizer,
    messages: Sequence[ChatMessage],
    *,
    add_generation_prompt: bool | None,
    continue_final_message: bool = False,
    variables: Mapping[str, Any] | None = None,
    tools: Sequence[Tool] | None = None,
    tool_format: ToolFormat | None = None,
) -> str:
    """The conversation as the model was trained to read it; raises ApiError (400) when its template refuses.

    It ends with the beginning of the assistant's next turn if `add_generation_prompt`, or within the last one if
    `continue_final_message`, never both; None means the former unless the latter.
    A template that knows no tools gets them as words: in the system's turn, in those of the assistant, and results as
    the user's.
    """
    if continue_final_message:
        _check_continuation(messages[-1], len(messages) - 1, add_generation_prompt)
    turns = [_as_template_reads(number, message) for number, message in enumerate(messages)]
    if continue_final_message:
        turns[-1]["content"] += _END_MARK
    offered = [tool.model_dump(exclude_unset=True) for tool in tools or ()]
    if "developer" not in tokenizer.template_source:
        turns = [{**turn, "role": "system"} if turn["role"] == "developer" else turn for turn in turns]
    if not knows_tools(tokenizer.template_source):
        turns = in_words(turns, offered, tool_format or FORMATS["hermes"])
    try:
        text = tokenizer.render_chat(
            turns,
            add_generation_prompt=not continue_final_message
            if add_generation_prompt is None
            else add_generation_prompt,
            variables={**(variables or {}), **({"tools": offered} if offered else {})},
        )
    except ChatTemplateError as error:
        raise bad_request(str(error), "messages", code="invalid_value") from None
    return _cut_at_mark(text) if continue_final_message else text


def _check_continuation(last: ChatMessage, number: int, add_generation_prompt: bool | None) -> None:
    """Raise ApiError (400) where there is nothing to go on with."""
    if add_generation_prompt:
        msg = "continue_final_message and add_generation_prompt must not both be true"
        raise bad_request(msg, "continue_final_message", "invalid_value")
    if last.role != "assistant":
        path = f"messages[{number}].role"
        raise bad_request(
            f"{path} must be 'assistant' with continue_final_message, got {last.role!r}", path, "invalid_value"
        )
    if not last.content or last.tool_calls:
        path = f"messages[{number}].content"
        raise bad_request(
            f"{path} must be a text, without tool_calls, with continue_final_message", path, "invalid_value"
        )


def _cut_at_mark(text: str) -> str:
    """What stands before the mark. A template that trims turns would have trimmed the words before it as well."""
    before, found, after = text.rpartition(_END_MARK.rstrip())
    if not found:
        msg = "the chat template leaves the last turn out: it cannot be continued"
        raise bad_request(msg, "continue_final_message", "invalid_value")
    return before if after.startswith(" ") else before.rstrip()


def in_words(turns: Sequence[Turn], tools: Sequence[Turn], tool_format: ToolFormat) -> list[Turn]:
    """The same conversation in plain turns, as templates without tools read it."""
    told: list[Turn] = []
    for is_result, group in itertools.groupby(turns, key=lambda turn: turn["role"] == "tool"):
        if is_result:
            results = "\n".join(f"<tool_response>\n{turn['content']}\n</tool_response>" for turn in group)
            told.append({"role": "user", "content": results})
        else:
            told += [_call_in_words(turn, tool_format) for turn in group]
    if not tools:
        return told
    instructions = _describe(tools, tool_format)
    if told and told[0]["role"] == "system":
        return [{**told[0], "content": f"{told[0]['content']}\n\n{instructions}"}, *told[1:]]
    return [{"role": "system", "content": instructions}, *told]


def _call_in_words(turn: Turn, tool_format: ToolFormat) -> Turn:
    if not turn.get("tool_calls"):
        return turn
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in turn["tool_calls"]]
    words = [turn["content"]] if turn["content"] else []
    rest = {key: value for key, value in turn.items() if key != "tool_calls"}
    return {**rest, "content": "\n".join([*words, tool_format.write(calls)])}


def _describe(tools: Sequence[Turn], tool_format: ToolFormat) -> str:
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    example = tool_format.write([("FUNCTION", {"PARAMETER": "VALUE"})])
    return (
        f"You may call these functions:\n{listed}\nTo call one, answer in this form and with nothing else:\n{example}"
    )


def _as_template_reads(number: int, message: ChatMessage) -> Turn:
    """A plain dict; content in parts becomes one text, arguments become objects, as most templates expect."""
    turn = message.model_dump(exclude_unset=True)
    if isinstance(message.content, list):
        for place, part in enumerate(message.content):
            if part.type != "text" or part.text is None:
                path = f"messages[{number}].content[{place}]"
                raise bad_request(
                    f"{path} must be of type 'text' with a text, got {part.type!r}", path, "invalid_value"
                )
        turn["content"] = "\n".join(part.text or "" for part in message.content)
    elif message.content is None:
        turn["content"] = ""
    if not message.tool_calls:
        turn.pop("tool_calls", None)
    for call in turn.get("tool_calls", ()):
        call["function"]["arguments"] = _arguments(call["function"].get("arguments"))
    return turn


def _arguments(sent: Any) -> Any:
    """An object; what is none stays what the model once wrote, cut off or not."""
    if not isinstance(sent, str):
        return sent or {}
    try:
        return json.loads(sent) if sent.strip() else {}
    except (ValueError, RecursionError):
        return sent
