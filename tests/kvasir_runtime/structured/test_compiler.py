"""The compiler beside the steps: one compilation for all who ask, a cache, bounds on number, size and time."""

import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest

from kvasir_runtime.structured import compiler as module
from kvasir_runtime.structured.compiler import COMPILE_LIMIT_S, GrammarCompiler
from kvasir_runtime.structured.constraint import Constraint
from kvasir_runtime.structured.grammar import Grammar, GrammarBusyError, GrammarError


class Work:
    """Compiles when it may; counts."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.begun = threading.Semaphore(0)
        self.done: list[str] = []

    def __call__(self, constraint: Constraint) -> Grammar:
        self.begun.release()
        self.may.wait(20)
        self.done.append(constraint.text)
        if constraint.text == "bad":
            raise GrammarError("is bad")
        if constraint.text == "odd":
            raise KeyError("odd")
        return Grammar(cast("Any", None), cast("Any", constraint.text))


@pytest.fixture
def work() -> Iterator[Work]:
    work = Work()
    yield work
    work.may.set()


def collect(compiler: GrammarCompiler, count: int) -> dict[str, Any]:
    ready: dict[str, Any] = {}
    while len(ready) < count:
        compiler.wait(30)
        ready |= compiler.take_ready()
    return ready


def regex(text: str, field: str = "") -> Constraint:
    return Constraint("regex", text, field=field)


def test_one_compilation_for_all_who_ask(work: Work) -> None:
    """The same text from different fields is compiled once, now and later."""
    compiler = GrammarCompiler(work)
    compiler.submit("a", regex("x", "guided_regex"))
    compiler.submit("b", regex("x", "structured_outputs.regex"))
    assert compiler.take_ready() == {}
    assert len(compiler) == 2
    work.may.set()
    ready = collect(compiler, 2)
    assert ready["a"] is ready["b"]
    compiler.submit("c", regex("x"))
    assert compiler.take_ready() == {"c": ready["a"]}
    assert work.done == ["x"]
    assert len(compiler) == 0


def test_failures_are_told_and_not_kept(work: Work) -> None:
    """What is wrong is wrong for its request; an unexpected failure is one too."""
    work.may.set()
    compiler = GrammarCompiler(work)
    compiler.submit("a", regex("bad"))
    compiler.submit("b", regex("odd"))
    ready = collect(compiler, 2)
    assert str(ready["a"]) == "is bad"
    assert "KeyError" in str(ready["b"])
    compiler.submit("c", regex("bad"))
    assert isinstance(collect(compiler, 1)["c"], GrammarError)
    assert work.done.count("bad") == 2


def test_waiting_is_bounded_in_time(work: Work) -> None:
    """After the limit the request gets its refusal; the grammar may still come, for the next."""
    compiler = GrammarCompiler(work)
    for name in ("a", "slow", "behind"):
        compiler.submit(name, regex("x" if name == "a" else name), now=100.0)
    work.begun.acquire()
    work.begun.acquire()
    assert compiler.take_ready(100.0 + COMPILE_LIMIT_S) == {}
    late = compiler.take_ready(100.1 + COMPILE_LIMIT_S)
    assert "takes more than 10 s" in str(late["a"])
    assert isinstance(late["behind"], GrammarBusyError)
    work.may.set()
    compiler.submit("b", regex("x"))
    assert isinstance(collect(compiler, 1)["b"], Grammar)
    assert work.done.count("x") == 1


def test_the_number_that_wait_is_bounded(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it new ones are refused at once, those under way are shared."""
    monkeypatch.setattr(module, "MAX_PENDING", 3)
    compiler = GrammarCompiler(work)
    for number in range(4):
        compiler.submit(str(number), regex(f"x{number}"))
    compiler.submit("again", regex("x0"))
    (refused,) = compiler.take_ready().items()
    assert refused[0] == "3"
    assert isinstance(refused[1], GrammarBusyError)
    work.may.set()
    assert set(collect(compiler, 4)) == {"0", "1", "2", "again"}


@pytest.mark.parametrize(("bound", "value"), [("MAX_CACHED", 2), ("MAX_CACHED_BYTES", 5)])
def test_the_cache_is_bounded(work: Work, monkeypatch: pytest.MonkeyPatch, bound: str, value: int) -> None:
    """What was not asked for longest goes first."""
    monkeypatch.setattr(module, bound, value)
    work.may.set()
    compiler = GrammarCompiler(work)
    for text in ("aa", "bb", "aa", "cc", "aa", "bb"):
        compiler.submit(text, regex(text))
        collect(compiler, 1)
    assert work.done == ["aa", "bb", "cc", "bb"]


def test_cancelled_requests_get_nothing(work: Work) -> None:
    """Whether their grammar is still to come or there."""
    compiler = GrammarCompiler(work)
    compiler.submit("a", regex("x"))
    compiler.cancel("a")
    work.may.set()
    assert len(compiler) == 0
    compiler.submit("b", regex("x"))
    assert set(collect(compiler, 1)) == {"b"}
    compiler.submit("c", regex("x"))
    compiler.cancel("c")
    assert compiler.take_ready() == {}
