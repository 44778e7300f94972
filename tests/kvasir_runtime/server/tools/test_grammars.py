"""Grammars of tool calls with a real tokenizer: what they let pass is read back as calls, and fits its schema."""

import json
import random
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from kvasir_runtime.server.protocol import ChatCompletionRequest
from kvasir_runtime.server.tools import grammars
from kvasir_runtime.server.tools.events import Arguments, CallBegun, Said
from kvasir_runtime.server.tools.formats import FORMATS
from kvasir_runtime.server.tools.grammars import Function
from kvasir_runtime.server.tools.marked import MISTRAL_ARGUMENTS, MISTRAL_MARKER
from kvasir_runtime.server.tools.reader import merge
from kvasir_runtime.server.tools.use import tool_use
from kvasir_runtime.structured.constraint import Constraint
from kvasir_runtime.structured.grammar import GrammarBackend
from kvasir_runtime.tokenizer import Tokenizer

TINY_LLAMA = Path(__file__).parents[3] / "models" / "tiny-llama"
VOCAB = 3072
TOOLS: list[dict[str, Any]] = [
    {
        "function": {
            "name": "weather.get",
            "parameters": {
                "properties": {
                    "city": {"type": "string", "maxLength": 6},
                    "when": {"$ref": "#/$defs/when"},
                    "unit": {"enum": ["C", "F", None]},
                },
                "required": ["city"],
                "additionalProperties": False,
                "$defs": {"when": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}},
            },
        }
    },
    {"function": {"name": "now"}},
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(TINY_LLAMA)


@pytest.fixture(scope="module")
def backend() -> GrammarBackend:
    return GrammarBackend(TINY_LLAMA, VOCAB, [2, 6])


def walk(backend: GrammarBackend, constraint: Constraint, chance: random.Random) -> list[int]:
    """A random text of the grammar; short tokens are as likely as long ones."""
    import numpy as np

    matcher = backend.compile(constraint).matcher()
    ids: list[int] = []
    while True:
        bits = np.zeros((1, VOCAB // 8), dtype=np.uint8)
        backend.fill_masks([matcher], bits.ctypes.data)
        allowed = np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist()
        assert not matcher.error
        token = chance.choice(allowed) if 2 not in allowed or chance.random() < 0.3 else 2
        if token in (2, 6):
            return ids
        ids.append(token)
        matcher.accept([token])
        assert len(ids) < 3000


def request(**fields: Any) -> ChatCompletionRequest:
    body = {"messages": [{"role": "user", "content": "hi"}], "tools": TOOLS, **fields}
    return ChatCompletionRequest.model_validate(body)


@pytest.mark.parametrize("tool_format", sorted(FORMATS))
@pytest.mark.parametrize("choice", ["required", {"function": {"name": "weather.get"}}])
def test_what_a_grammar_lets_pass_is_calls(
    tokenizer: Tokenizer, backend: GrammarBackend, tool_format: str, choice: Any
) -> None:
    """Every text is one or more calls, without a word beside them; named functions are called once."""
    use = tool_use(request(tool_choice=choice), tokenizer, tool_format)
    assert use is not None
    constraint = use.constraint(None, tokenizer)
    assert constraint is not None
    for seed in range(12):
        text = tokenizer.decode(walk(backend, constraint, random.Random(seed)), skip_special_tokens=False)
        reader = use.reader()
        events = merge([*reader.push(text), *reader.finish()])
        assert not any(isinstance(event, Said) for event in events), text
        names = [event.name for event in events if isinstance(event, CallBegun)]
        assert names == ["weather.get"] if choice != "required" else names
        for name, event in zip(names, (e for e in events if isinstance(e, Arguments)), strict=True):
            schema = next(tool["function"].get("parameters", {}) for tool in TOOLS if tool["function"]["name"] == name)
            jsonschema.validate(json.loads(event.text), schema)


@pytest.mark.parametrize("tool_format", ["hermes", "mistral"])
@pytest.mark.parametrize("parallel", [True, False])
def test_strict_calls_within_text(
    tokenizer: Tokenizer, backend: GrammarBackend, tool_format: str, parallel: bool
) -> None:
    """With `auto` and strict functions any text may come, but behind the marker only a call of the right form."""
    tools = [{"function": {**TOOLS[0]["function"], "strict": True}}]
    use = tool_use(request(tools=tools, parallel_tool_calls=parallel), tokenizer, tool_format)
    assert use is not None
    constraint = use.constraint(None, tokenizer)
    assert constraint is not None
    grammar = backend.compile(constraint)
    call = use.tool_format.write([("weather.get", {"city": "Oslo"})])
    for said, allowed in (
        ("No call at all.\nReally [] <tool", True),
        (f"Well. {call}", True),
        (f"{call}\n{call}", parallel),
        (f"Then {use.tool_format.marker} nothing", False),
        (call.replace("city", "town"), False),
        (call.replace("weather.get", "weather.set"), False),
    ):
        matcher = grammar.matcher()
        matcher.accept(tokenizer.encode(said, add_special_tokens=False))
        assert (not matcher.error and matcher.complete) == allowed, (said, matcher.error)


@pytest.mark.parametrize("in_text", [True, False])
def test_markers_that_are_special_tokens(tokenizer: Tokenizer, backend: GrammarBackend, in_text: bool) -> None:
    """They are tokens of the grammar, and their letters are not; here two of the template's play Mistral's."""
    ids = {MISTRAL_MARKER: 3, MISTRAL_ARGUMENTS: 4}

    def literal(text: str) -> str:
        return f"<[{ids[text]}]>" if text in ids else grammars.quoted(text)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    calls = grammars.mistral([Function("f", {"type": "object"})], literal, parallel=True)
    whole = (
        grammars.calls_in_text(calls, literal(MISTRAL_MARKER), parallel=True) if in_text else f"start: calls\n{calls}"
    )
    grammar = backend.compile(Constraint("grammar", whole))
    call = [3, *encode("f"), 4, *encode('{"a": 1}')]
    for said, allowed in (
        (call, True),
        ([*call, *call], True),
        ([*encode("Well."), *call], in_text),
        ([3, *encode("g"), 4, *encode("{}")], False),
        ([3, *encode("f{}")], False),
        (encode("[TOOL_CALLS]f[ARGS]{}"), in_text),
    ):
        matcher = grammar.matcher()
        matcher.accept(said)
        assert (not matcher.error and matcher.complete) == allowed, (said, matcher.error)


def test_calls_or_an_answer(tokenizer: Tokenizer, backend: GrammarBackend) -> None:
    """With `auto` and a schema for answers both can come, and nothing else."""
    use = tool_use(request(tool_choice="auto", parallel_tool_calls=False), tokenizer, None)
    assert use is not None
    answer = Constraint(
        "json_schema", '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'
    )
    constraint = use.constraint(answer, tokenizer)
    assert constraint is not None
    seen = set()
    for seed in range(40):
        text = tokenizer.decode(walk(backend, constraint, random.Random(seed)))
        reader = use.reader()
        events = merge([*reader.push(text), *reader.finish()])
        seen.add(type(events[0]))
        if isinstance(events[0], Said):
            assert isinstance(json.loads(events[0].text)["n"], int)
    assert seen == {Said, CallBegun}
