"""What a body says of where it should go."""

import json
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvasir_router.prompts import BOUNDARIES, BYTES_PER_TOKEN, OUTPUT_TOKENS, read_ask


def completion(prompt, **fields):
    return read_ask(msgspec.json.encode({"model": "m", "prompt": prompt, **fields}))


def shared(one, other) -> int:
    """How many blocks two asks begin with in common."""
    pairs = list(zip(one.blocks, other.blocks, strict=False))
    return next((n for n, (a, b) in enumerate(pairs) if a != b), len(pairs))


@given(st.text(min_size=0, max_size=3000), st.text(max_size=500), st.text(max_size=500))
def test_a_common_beginning_has_common_blocks(begin, one, other):
    """As many as there are boundaries in it; and no more than where they part."""
    a, b = completion(begin + one), completion(begin + other)
    common = len(begin.encode(errors="replace"))
    assert shared(a, b) >= sum(boundary <= common for boundary in BOUNDARIES)
    if a.blocks == b.blocks and a.blocks:
        size = BOUNDARIES[len(a.blocks) - 1]
        assert (begin + one).encode(errors="replace")[:size] == (begin + other).encode(errors="replace")[:size]


def test_four_fifths_of_a_common_prefix_are_seen():
    for boundary, following in pairwise(BOUNDARIES):
        assert following - boundary <= max(64, following / 5)
    assert len(BOUNDARIES) < 64
    assert len(completion("x" * 5_000_000).blocks) == len(BOUNDARIES)


def test_a_conversation_goes_on_where_it_was():
    """The next turn begins with the blocks of the last one."""
    messages = [{"role": "system", "content": "You are kind. " * 40}, {"role": "user", "content": "Tell me. " * 30}]
    first = read_ask(json.dumps({"model": "m", "messages": messages}).encode())
    messages += [{"role": "assistant", "content": "So it is. " * 50}, {"role": "user", "content": "And then?"}]
    second = read_ask(json.dumps({"model": "m", "messages": messages}).encode())
    assert second.blocks[: len(first.blocks)] == first.blocks
    assert len(second.blocks) > len(first.blocks) > 5


def test_what_makes_other_kv_makes_other_blocks():
    """Model or adapter, cache salt and tools; sampling does not."""
    text = "x" * 100
    plain = completion(text)
    assert completion(text, temperature=1, max_tokens=3).blocks == plain.blocks
    for other in (completion(text, model="adapter"), completion(text, cache_salt="tenant")):
        assert shared(plain, other) == 0
    with_tools = [
        read_ask(msgspec.json.encode({"messages": [{"content": text}], "tools": tools}))
        for tools in ([], [{"name": "f"}])
    ]
    assert shared(*with_tools) == 0


def test_token_ids_and_several_prompts():
    ids = list(range(1000))
    assert shared(completion(ids), completion([*ids[:600], 7])) > 5
    assert completion([ids, [1]]).blocks == completion(ids).blocks
    assert completion(["x" * 100, "y"]).blocks == completion("x" * 100).blocks


def test_a_session_comes_first():
    """The header before `prompt_cache_key` before `user`; the same session has the same first block for any prompt."""
    header = read_ask(b'{"prompt": "a", "user": "u"}', "s1")
    assert header.session
    assert header.blocks == read_ask(b'{"prompt": "b", "prompt_cache_key": "k"}', "s1").blocks
    assert (
        completion("a", user="u").blocks[0]
        == completion("b", user="u").blocks[0]
        != completion("a", user="v").blocks[0]
    )
    assert completion("a", user="u", prompt_cache_key="k").blocks == completion("a", prompt_cache_key="k").blocks
    assert not completion("a").session


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"prompt": {"a": 1}}', b'{"prompt": [null]}'),
        *(b'{"messages": 3}', b'{"messages": [1, null, "x"]}', b'{"model": 7, "prompt": []}', b"[" * 100_000),
        b'{"prompt": "\\ud800"}',
    ],
)
def test_what_cannot_be_read_goes_anywhere(body):
    """The replica refuses it with the reason."""
    ask = read_ask(body)
    assert (ask.blocks, ask.model) == ((), "")


def test_the_cost_is_the_size_in_tokens():
    body = msgspec.json.encode({"prompt": "x" * 4000})
    assert read_ask(body).cost == len(body) // BYTES_PER_TOKEN + OUTPUT_TOKENS
