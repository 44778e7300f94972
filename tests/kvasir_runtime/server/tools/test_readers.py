"""Readers of tool calls: what each format means, and that it does not matter in which pieces a text comes."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvasir_runtime.server.tools.bare import python_arguments
from kvasir_runtime.server.tools.events import Arguments, CallBegun, Event, Said
from kvasir_runtime.server.tools.formats import FORMATS, detect
from kvasir_runtime.server.tools.reader import NoCallError, merge

NAMES = {"f", "get_weather"}
A = '{"city": "Oslo \\"}{", "n": [1, {"x": null}]}'


def read(tool_format: str, *pieces: str) -> list[Event]:
    reader = FORMATS[tool_format].reader(NAMES)
    events = [event for piece in pieces for event in reader.push(piece)]
    return merge([*events, *reader.finish()])


def calls(*arguments: tuple[str, str]) -> list[Event]:
    told: list[Event] = []
    for index, (name, text) in enumerate(arguments):
        told += [CallBegun(index, name), Arguments(index, text)]
    return told


ONE_F = calls(("f", A))
CASES = [
    ("hermes", "Hello  \n you ", [Said("Hello  \n you ")]),
    ("hermes", "", []),
    ("hermes", f'<tool_call>\n{{"name": "f", "arguments": {A}}}\n</tool_call>', ONE_F),
    ("hermes", f'<tool_call>{{"arguments":{A},"name":"f"}}</tool_call>', ONE_F),
    (
        "hermes",
        f'Let me see.\n\n<tool_call> {{"name":"f" , "arguments":{A}}} </tool_call>\n',
        [Said("Let me see."), *ONE_F],
    ),
    (
        "hermes",
        '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n<tool_call>\n{"name": "get_weather"}\n</tool_call>',
        calls(("f", "{}"), ("get_weather", "{}")),
    ),
    ("hermes", '<tool_call>{"name": "f", "id": 3, "arguments": "{\\"a\\": 1}"}</tool_call>', calls(("f", '{"a": 1}'))),
    ("hermes", '<tool_call>{"name": "f", "arguments": null}</tool_call>', calls(("f", "{}"))),
    (
        "hermes",
        '<tool_call>{"name": "g", "arguments": {}}</tool_call>',
        [Said('<tool_call>{"name": "g", "arguments": {}}</tool_call>')],
    ),
    ("hermes", "<tool_call>none of it", [Said("<tool_call>none of it")]),
    ("hermes", "a <tool_ca", [Said("a <tool_ca")]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "x', [CallBegun(0, "f"), Arguments(0, '{"a": "x')]),
    ("hermes", '<tool_call>{"na', [Said('<tool_call>{"na')]),
    ("llama3_json", f'{{"name": "f", "parameters": {A}}}', ONE_F),
    ("llama3_json", f' <|python_tag|>{{"name": "f", "parameters": {A}}}', ONE_F),
    (
        "llama3_json",
        '{"name": "f", "parameters": {}}; {"name": "get_weather", "parameters": {"a": 1}}',
        calls(("f", "{}"), ("get_weather", '{"a": 1}')),
    ),
    ("llama3_json", '{"type": "function", "name": "f", "parameters": {}}', calls(("f", "{}"))),
    ("llama3_json", '{"name": "Ann", "age": 3}', [Said('{"name": "Ann", "age": 3}')]),
    ("llama3_json", "{} is empty", [Said("{} is empty")]),
    ("llama3_json", " I think { so", [Said(" I think { so")]),
    ("mistral", f'[TOOL_CALLS] [{{"name": "f", "arguments": {A}}}]', ONE_F),
    (
        "mistral",
        'Yes[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "get_weather", "arguments": {}}]',
        [Said("Yes"), *calls(("f", "{}"), ("get_weather", "{}"))],
    ),
    ("mistral", f"[TOOL_CALLS]f[ARGS]{A}", ONE_F),
    (
        "mistral",
        f"[TOOL_CALLS]f{A}[TOOL_CALLS]get_weather[CALL_ID]abc[ARGS]{{}}",
        calls(("f", A), ("get_weather", "{}")),
    ),
    ("mistral", "[TOOL_CALLS]g{}", [Said("[TOOL_CALLS]g{}")]),
    (
        "pythonic",
        "[f(a='x', b=[1, 2.5], c={'k': None}), get_weather()]",
        calls(("f", '{"a": "x", "b": [1, 2.5], "c": {"k": null}}'), ("get_weather", "{}")),
    ),
    ("pythonic", '[f(a="]) \\" ü", b=true)]', calls(("f", '{"a": "]) \\" ü", "b": true}'))),
    ("pythonic", "[f(1)]", [Said("[f(1)]")]),
    ("pythonic", "[f(a=open('x'))]", [Said("[f(a=open('x'))]")]),
    ("pythonic", "[1, 2]", [Said("[1, 2]")]),
    ("pythonic", "Well", [Said("Well")]),
]


@pytest.mark.parametrize(("tool_format", "text", "expected"), CASES)
def test_a_text_is_read(tool_format: str, text: str, expected: list[Event]) -> None:
    """Calls are calls, everything else is text, whole or letter by letter."""
    assert read(tool_format, text) == expected
    assert read(tool_format, *text) == expected


@given(st.sampled_from(CASES), st.lists(st.integers(0, 120)))
def test_pieces_do_not_matter(case: tuple[str, str, list[Event]], cuts: list[int]) -> None:
    """However a text is cut, the same is told."""
    tool_format, text, expected = case
    ends = sorted({*cuts, 0, len(text)})
    assert read(tool_format, *(text[a:b] for a, b in itertools.pairwise(ends)), text[ends[-1] :]) == expected


ALPHABET = [
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "[ARGS]",
    '{"name": "f", ',
    '"arguments": ',
    "{}",
    "}",
    "]",
    "[",
    "f(",
    ")",
    " ",
    "x",
    '"',
    "\\",
    ";",
]


@given(st.sampled_from(sorted(FORMATS)), st.lists(st.sampled_from(ALPHABET) | st.text(max_size=3), max_size=12))
def test_any_text_is_read(tool_format: str, pieces: list[str]) -> None:
    """Nothing a model says makes a reader fail, pieces do not matter, and indices count up."""
    events = read(tool_format, *pieces)
    assert events == read(tool_format, *"".join(pieces))
    begun = [event.index for event in events if isinstance(event, CallBegun)]
    assert begun == list(range(len(begun)))
    if not begun:
        assert events == ([Said("".join(pieces))] if "".join(pieces) else [])


@pytest.mark.parametrize(
    "source",
    ["1", "a", "a=b", "a=f()", "**{'a': 1}", "a=1)+(b=2", "a=" + "[" * 300 + "]" * 300, "a={1,2}", "a=1 if x else 2"],
)
def test_python_arguments_are_literals(source: str) -> None:
    """Nothing else is read, least of all executed."""
    with pytest.raises(NoCallError):
        python_arguments(source)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ messages }}", "hermes"),
        ("{% if tools %}<tool_call>{% endif %}", "hermes"),
        ("{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]", "mistral"),
        ("{% if tools %}Environment: ipython{% endif %}", "llama3_json"),
        ("{% if tools %}<tool_call><function=x>{% endif %}", None),
        ("{% if tools %}?{% endif %}", None),
    ],
)
def test_detection(template: str, expected: str | None) -> None:
    """A template's own markers tell its format."""
    found = detect(template)
    assert (found.name if found else None) == expected
