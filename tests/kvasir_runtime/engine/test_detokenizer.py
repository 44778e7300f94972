"""Tokens to text as they come."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from kvasir_runtime.engine.detokenizer import MAX_HELD_TOKENS, Detokenizer, IncrementalDecoder, StopStrings
from tests.kvasir_runtime.server.harness import MODEL

BYTE_LEVEL = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
LETTERS = "abcdefgh ,."


def byte_fallback_tokenizer() -> Tokenizer:
    """As Llama 2's: words behind ▁, everything else as single bytes."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁hi", "▁there", "you", "▁you"]
    tokenizer = Tokenizer(
        models.BPE({word: rank for rank, word in enumerate(words)}, [], byte_fallback=True, unk_token="<unk>")
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


FALLBACK = byte_fallback_tokenizer()
FALLBACK_PIECES = [
    *([FALLBACK.get_vocab()[word]] for word in ("▁hi", "▁there", "you")),
    *([1 + byte for byte in char.encode()] for char in "éü日🙂"),
]


def pieces(decoder: IncrementalDecoder, ids: list[int]) -> list[str]:
    return [*(decoder.push([token_id]) for token_id in ids), decoder.flush()]


@settings(deadline=None)
@given(st.text(max_size=60), st.integers(0, 8))
def test_byte_level_pieces_join_to_the_whole(text, split):
    """Whatever the text and wherever the prompt ends, the pieces are the rest of the text."""
    ids = BYTE_LEVEL.encode(text, add_special_tokens=False).ids
    prompt, rest = ids[:split], ids[split:]
    whole = BYTE_LEVEL.decode(ids)
    shown = "".join(pieces(IncrementalDecoder(BYTE_LEVEL, prompt), rest))
    if "\N{REPLACEMENT CHARACTER}" not in BYTE_LEVEL.decode(prompt):  # the prompt ends between characters
        assert BYTE_LEVEL.decode(prompt) + shown == whole


@settings(deadline=None)
@given(st.lists(st.sampled_from(FALLBACK_PIECES), max_size=30), st.lists(st.sampled_from(FALLBACK_PIECES), max_size=8))
def test_byte_fallback_pieces_join_to_the_whole(generated, prompt):
    """Runs of byte tokens, which read differently when cut, come out whole, leading spaces included."""
    prompt_ids = [token for piece in prompt for token in piece]
    ids = [token for piece in generated for token in piece]
    shown = "".join(pieces(IncrementalDecoder(FALLBACK, prompt_ids), ids))
    assert FALLBACK.decode(prompt_ids) + shown == FALLBACK.decode(prompt_ids + ids)


def test_a_character_is_shown_when_it_is_whole():
    """The bytes of a character wait for each other."""
    ids = [1 + byte for byte in "🙂".encode()]
    assert pieces(IncrementalDecoder(FALLBACK, []), ids) == ["", "", "", "🙂", ""]


def test_invalid_bytes_are_not_held_for_ever():
    """Bytes that never become a character are shown as such after a while, and the rest at the end."""
    decoder = IncrementalDecoder(FALLBACK, [])
    shown = [decoder.push([1 + 0xE2]) for _ in range(MAX_HELD_TOKENS + 1)]
    assert [bool(text) for text in shown] == [False] * MAX_HELD_TOKENS + [True]
    assert set(shown[-1]) == {"\N{REPLACEMENT CHARACTER}"}


def test_special_tokens_are_hidden_unless_wanted():
    """skip_special_tokens hides the end marker; without it the marker is text."""
    eos = BYTE_LEVEL.get_vocab()["<|endoftext|>"]
    assert IncrementalDecoder(BYTE_LEVEL, []).push([eos]) == ""
    assert IncrementalDecoder(BYTE_LEVEL, [], skip_special_tokens=False).push([eos]) == "<|endoftext|>"


@given(
    st.lists(st.text(LETTERS, max_size=4), max_size=20),
    st.lists(st.text(LETTERS, min_size=1, max_size=5), min_size=1, max_size=3),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_stop_strings_against_a_plain_search(texts, stops, include):
    """However the text is cut, what is shown ends at the first stop string of the whole text, or is all of it."""
    finder = StopStrings(tuple(stops), include)
    shown = ""
    for text in texts:
        shown += finder.push(text)
        if finder.matched is not None:
            break
    else:
        shown += finder.flush()
    whole = "".join(texts)
    ends = sorted((whole.find(stop), stop) for stop in stops if stop in whole)
    if finder.matched is None:
        assert not ends
        assert shown == whole
    else:
        position = whole.find(finder.matched)
        assert not any(0 <= place < position - len(finder.matched) for place, _ in ends)
        assert shown == whole[: position + (len(finder.matched) if include else 0)]


@pytest.mark.parametrize(
    ("texts", "shown"),
    [
        (["hello wor", "ld"], ["hello ", ""]),  # found: nothing of it was ever shown
        (["hello wor", "m"], ["hello ", "worm"]),  # not found after all
        (["w", "w", "o"], ["", "w", ""]),  # only what can still become one is held
    ],
)
def test_only_what_may_become_a_stop_string_is_held(texts, shown):
    """Text is shown as soon as no stop string can begin in it."""
    finder = StopStrings(("world",))
    assert [finder.push(text) for text in texts] == shown


def test_detokenizer_counts_the_tokens_up_to_the_stop_string():
    """Tokens behind the one that completed the stop string do not count."""
    ids = BYTE_LEVEL.encode("one two three four", add_special_tokens=False).ids
    detokenizer = Detokenizer(BYTE_LEVEL, [], stop=("two",))
    text = detokenizer.push(ids)
    assert text.strip() == "one"
    assert detokenizer.stop_string == "two"
    assert BYTE_LEVEL.decode(ids[: detokenizer.token_count]).endswith("two")


def test_stop_strings_do_not_count_before_min_tokens():
    """min_tokens holds for stop strings as for stop tokens."""
    ids = BYTE_LEVEL.encode("stop stop stop", add_special_tokens=False).ids
    detokenizer = Detokenizer(BYTE_LEVEL, [], stop=("stop",), min_tokens=len(ids) - 1)
    text = detokenizer.push(ids) + detokenizer.flush()
    assert text.count("stop") == 2
    assert detokenizer.stop_string == "stop"
