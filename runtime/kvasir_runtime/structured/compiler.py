"""Compiles grammars beside the engine's steps: few threads of low priority, a cache by content, bounds on all of it."""

import os
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from threading import Barrier, get_native_id, stack_size
from typing import Final

from kvasir_runtime.structured.constraint import Constraint
from kvasir_runtime.structured.grammar import Grammar, GrammarBusyError, GrammarError

COMPILE_LIMIT_S: Final = 10.0
"""How long a request waits for its grammar, at most; a schema of 110 kB takes a tenth of a second."""

MAX_CACHED: Final = 256
MAX_CACHED_BYTES: Final = 512 << 10
"""Source text of the compiled grammars that are kept. They take 150 to 250 times as much memory once followed: a schema
of 200 fields (13 kB) 1.9 MB with a vocabulary of 128,000, so about 100 MB in all."""

MAX_PENDING: Final = 64
"""Different grammars that may wait for a thread."""

NUM_THREADS: Final = 2
_STACK_BYTES: Final = 512 << 20
"""The library recurses along chains of rules, 3 kB a rule: 8 MB would end the process at some 2,500. Only what is
touched takes memory."""

_NICENESS: Final = 10
"""The step's threads go first where there are not enough cores."""

Outcome = Grammar | GrammarError


@dataclass(frozen=True)
class _Waiting:
    future: "Future[Grammar]"
    deadline: float


class GrammarCompiler:
    """Requests wait here, by a key of their own, until their grammar is there. One thread's alone.

    Grammars that requests still use live as long as these do, whatever the cache forgets.
    """

    def __init__(self, compile_: Callable[[Constraint], Grammar]) -> None:
        """`compile_` is called by several threads and raises GrammarError."""
        self._compile = compile_
        self._pool: ThreadPoolExecutor | None = None
        self._cache: OrderedDict[Constraint, Grammar] = OrderedDict()
        self._cached_bytes = 0
        self._futures: dict[Constraint, Future[Grammar]] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._ready: dict[str, Outcome] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._ready)

    def submit(self, key: str, constraint: Constraint, now: float | None = None) -> None:
        """Want a grammar: `take_ready` hands it out, at once when it is known."""
        now = time.monotonic() if now is None else now
        known = self._cache.get(constraint)
        if known is not None:
            self._cache.move_to_end(constraint)
            self._ready[key] = known
        elif constraint not in self._futures and len(self._futures) >= MAX_PENDING:
            self._ready[key] = GrammarBusyError(f"cannot be compiled now: {MAX_PENDING} others wait for that")
        else:
            future = self._futures.get(constraint) or self._start(constraint)
            self._waiting[key] = _Waiting(future, now + COMPILE_LIMIT_S)

    def cancel(self, key: str) -> None:
        """Want it no more. What is being compiled is finished, for the next who asks."""
        self._waiting.pop(key, None)
        self._ready.pop(key, None)

    def take_ready(self, now: float | None = None) -> dict[str, Outcome]:
        """The grammars, or why there is none, of all keys whose waiting has ended since the last call."""
        if not self._waiting and not self._ready:
            return {}
        now = time.monotonic() if now is None else now
        self._keep_done()
        for key, waiting in list(self._waiting.items()):
            if waiting.future.done():
                self._ready[key] = _outcome(waiting.future)
            elif now > waiting.deadline:
                self._ready[key] = _too_late(waiting.future)
            else:
                continue
            del self._waiting[key]
        ready, self._ready = self._ready, {}
        return ready

    def wait(self, timeout_s: float) -> None:
        """Return when `take_ready` may have something, at the latest after `timeout_s`."""
        if not self._ready:
            wait([waiting.future for waiting in self._waiting.values()], timeout_s, FIRST_COMPLETED)

    def _start(self, constraint: Constraint) -> "Future[Grammar]":
        self._pool = self._pool or _make_pool()
        future = self._pool.submit(self._compile, constraint)
        self._futures[constraint] = future
        return future

    def _keep_done(self) -> None:
        for constraint, future in list(self._futures.items()):
            if not future.done():
                continue
            del self._futures[constraint]
            outcome = _outcome(future)
            if isinstance(outcome, Grammar):
                self._keep(constraint, outcome)

    def _keep(self, constraint: Constraint, grammar: Grammar) -> None:
        self._cache[constraint] = grammar
        self._cached_bytes += len(constraint.text)
        while len(self._cache) > MAX_CACHED or self._cached_bytes > MAX_CACHED_BYTES:
            forgotten, _ = self._cache.popitem(last=False)
            self._cached_bytes -= len(forgotten.text)


def _too_late(future: "Future[Grammar]") -> GrammarError:
    if future.running():
        return GrammarError(f"takes more than {COMPILE_LIMIT_S:g} s to compile: simplify it")
    return GrammarBusyError(f"was not compiled within {COMPILE_LIMIT_S:g} s, as others were before it")


def _outcome(future: "Future[Grammar]") -> Outcome:
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, GrammarError):
        return error
    return GrammarError(f"cannot be compiled: {type(error).__name__}: {error}")


def _make_pool() -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(NUM_THREADS, "grammar", initializer=_give_way)
    usual = stack_size(_STACK_BYTES)
    try:
        started = Barrier(NUM_THREADS)
        wait([pool.submit(started.wait) for _ in range(NUM_THREADS)])  # every thread starts while the size counts
    finally:
        stack_size(usual)
    return pool


def _give_way() -> None:
    if hasattr(os, "setpriority"):
        with suppress(OSError):  # a sandbox may forbid it; then the kernel shares the cores evenly
            os.setpriority(os.PRIO_PROCESS, get_native_id(), _NICENESS)
