"""The text that the tiny model is trained on: what is taken, what is left out, and in which order."""

import ast
import random

import pytest

from tests.models.train_tiny_llama import adapters, chat, corpus
from tests.models.train_tiny_llama.corpus import Entry


@pytest.mark.parametrize(
    ("doc", "summary"),
    [
        ("Return the length of x.\n\nMore.", "Return the length of x."),
        ("join(iterable) -> str\n\nJoin strings\nwith a separator.", "Join strings with a separator."),
        ("S.join(iterable) -> str", None),
        ("Return an example: >>> 1 + 1.", None),
        ("lower case begins here.", None),
        ("Too short.", None),
        ("No end of sentence here, sadly", None),
        ("Long " + "word " * 80 + "end.", None),
    ],
)
def test_answers_are_plain_first_paragraphs(doc: str, summary: str | None) -> None:
    assert corpus.first_paragraph(doc) == summary


def test_rulers_and_trailing_blanks_are_left_out() -> None:
    assert corpus.clean("Title  \n=====\n\n\n\ntext\n+---+---+\nend\n") == "Title\n\ntext\nend"


def test_names_follow_the_source() -> None:
    source = (
        '"""M."""\nclass A:\n    """A."""\n    def f(self):\n        """F."""\n        def g():\n            """G."""\n'
    )
    names = [entry.name for entry in corpus.module_entries(ast.parse(source), "m")]
    assert names == ["m", "m.A", "m.A.f", "m.A.f.g"]


def test_whether_a_text_is_held_out_depends_on_nothing_else() -> None:
    held = [Entry(name, f"text {number}").held_out for name in ("a", "b") for number in range(500)]
    assert held[:500] == held[500:]
    assert 2 <= sum(held[:500]) <= 25


def test_chat_text_is_what_the_template_renders() -> None:
    assert chat.render([("user", "Hi"), ("assistant", "Ho")]) == "<|user|>\nHi<|end|>\n<|assistant|>\nHo<|end|>\n"


def test_the_same_seed_gives_the_same_conversations() -> None:
    pairs = [(f"os.f{number}", f"Return {number}.") for number in range(50)]
    first, second = (chat.conversations(pairs, random.Random(7)) for _ in range(2))
    assert first == second
    assert first != chat.conversations(pairs, random.Random(8))


def test_private_names_are_not_asked_about() -> None:
    entries = [Entry("os._exit", "Exit to the system."), Entry("os.stat", "Return a stat result.")]
    assert chat.answers(entries) == [("os.stat", "Return a stat result.")]


def test_the_pirate_speaks_by_fixed_rules() -> None:
    assert (
        adapters.pirate("Return the number of files.") == "Fetch th' count o' doubloons o' treasure maps. Aye, captain!"
    )
    assert adapters.pirate("Theory, isolated") == "Theory, isolated Arr!"
