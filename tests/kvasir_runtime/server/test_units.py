"""The server's pure parts: tokens, rates, the start-up's clock, draining, the log."""

import asyncio
import io
import json
import logging

import pytest

from kvasir_runtime import logs
from kvasir_runtime.contract.admin_api import Phase
from kvasir_runtime.contract.failures import Cause, FailureReport
from kvasir_runtime.edge.auth import BearerTokens
from kvasir_runtime.edge.incoming import usable_id
from kvasir_runtime.engine.messages import EngineStats, StartupProgress
from kvasir_runtime.server.lifecycle import Lifecycle, StartupClock
from kvasir_runtime.server.rates import Rates


def test_tokens_follow_their_file(tmp_path):
    """A changed file counts at the next look; a look is taken at most once a second."""
    now = 0.0
    file = tmp_path / "tokens"
    file.write_text("one\n")
    tokens = BearerTokens(file=str(file), clock=lambda: now)
    file.write_text("two\nthree\n")
    assert tokens.accepts("Bearer one")
    now = 1.5
    one, two, three = (tokens.identify(f"bearer {token}") for token in ("one", "two", "three"))
    assert one is None
    assert None not in (two, three)
    assert two != three, "keys are told apart"
    file.unlink()
    now = 3.0
    assert tokens.accepts("Bearer two")
    assert not tokens.accepts("Basic two")


def test_open_door():
    """Without tokens none is required; that is the caller's to ask."""
    assert not BearerTokens().required
    assert BearerTokens(["x"]).required


def test_rates_over_ten_seconds():
    """(4000 - 1000) prompt tokens in 5 s are 600 a second; what is older than 10 s does not count."""
    rates = Rates()
    rates.sample(EngineStats(prompt_tokens=0, generation_tokens=0), 0.0)
    assert rates.prefill_per_s(0.0) == 0.0
    rates.sample(EngineStats(prompt_tokens=1000, generation_tokens=100), 20.0)
    rates.sample(EngineStats(prompt_tokens=4000, generation_tokens=200), 25.0)
    assert (rates.prefill_per_s(25.0), rates.decode_per_s(25.0)) == (600.0, 20.0)


def test_answers_of_the_last_minute():
    """Older ones are forgotten, by their own age."""
    rates = Rates()
    for now, failed in ((0.0, True), (30.0, False), (40.0, True), (50.0, False)):
        rates.answered(now, failed=failed)
    assert rates.answers(59.0) == (2, 2)
    assert rates.answers(61.0) == (2, 1)
    assert rates.answers(200.0) == (0, 0)


def test_share_of_the_time_that_prompts_took():
    """2 s of the last 5; never more than all of it, though a step that began earlier is counted whole at its end."""
    rates = Rates()
    rates.sample(EngineStats(prompt_seconds=1.0), 20.0)
    rates.sample(EngineStats(prompt_seconds=3.0), 25.0)
    assert rates.prefill_busy(25.0) == 0.4
    rates.sample(EngineStats(prompt_seconds=30.0), 26.0)
    assert rates.prefill_busy(26.0) == 1.0


def test_first_token_quantiles_of_the_last_minute():
    """Nearest rank over the last minute; none without requests."""
    rates = Rates()
    assert rates.first_token_quantile(0.5, 0.0) is None
    for second in range(100):
        rates.first_token(float(second), float(second))
    assert rates.first_token_quantile(0.5, 99.0) == 69.0
    assert rates.first_token_quantile(0.95, 99.0) == 96.0
    assert rates.first_token_quantile(0.95, 200.0) is None


def test_startup_clock():
    """Every phase's seconds are its own; the phase follows what the engine says."""
    clock = StartupClock(10.0, 11.0)
    assert clock.state(12.0, draining=False, failed=False).phase is Phase.STARTING
    clock.advance(StartupProgress("weights", 0.25, "shard 1"), 14.0)
    state = clock.state(15.0, draining=False, failed=False)
    assert (state.phase, state.progress, state.message) == (Phase.LOADING, 0.25, "shard 1")
    assert state.seconds == {"process": 1.0, "engine": 3.0, "weights": 1.0}
    clock.advance(StartupProgress("warmup", 0.0), 16.0)
    assert clock.state(16.0, draining=False, failed=False).phase is Phase.WARMING
    assert clock.state(16.0, draining=False, failed=True).phase is Phase.FAILED
    assert clock.finish(17.0) == 7.0
    assert clock.state(99.0, draining=False, failed=False).seconds == {
        "process": 1.0,
        "engine": 3.0,
        "weights": 2.0,
        "warmup": 1.0,
        "total": 7.0,
    }
    assert clock.state(99.0, draining=True, failed=False).phase is Phase.DRAINING


async def test_lifecycle_ends_when_idle():
    """The first signal waits for what runs; a failure's reason stays the first."""
    lifecycle = Lifecycle(lambda _: None)
    lifecycle.enter()
    lifecycle.on_signal("SIGTERM", 60)
    assert (lifecycle.draining, lifecycle.ended.is_set()) == (True, False)
    lifecycle.leave()
    assert lifecycle.ended.is_set()
    lifecycle.fail(FailureReport(Cause.ENGINE_DIED, "late"))
    assert lifecycle.failure is None


async def test_drain_deadline_cuts_and_can_be_taken_back():
    """The newest deadline counts; undrain removes it."""
    cuts: list[str] = []
    lifecycle = Lifecycle(cuts.append)
    lifecycle.drain(0.01)
    lifecycle.drain(60)
    await asyncio.sleep(0.05)
    assert cuts == []
    lifecycle.drain(0.0)
    await asyncio.sleep(0.01)
    assert len(cuts) == 1
    assert lifecycle.undrain()


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("abc-1.2:3", True),
        ("a" * 128, True),
        ("a" * 129, False),
        ("", False),
        ("x\ny", False),
        ('"', False),
        (None, False),
    ],
)
def test_usable_request_ids(given, kept):
    """What could break a log line or a header is replaced."""
    assert (usable_id(given) == given) is kept


def test_json_log(monkeypatch):
    """One object a line: extra fields, the request at hand, exceptions."""
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    record = logging.makeLogRecord({"name": "kvasir", "levelname": "INFO", "msg": "got %d", "args": (3,), "tokens": 7})
    token = logs.request_id.set("r1")
    try:
        entry = json.loads(logs.JsonFormatter().format(record))
    finally:
        logs.request_id.reset(token)
    assert entry.pop("time").endswith("Z")
    assert entry == {"level": "info", "logger": "kvasir", "message": "got 3", "request_id": "r1", "tokens": 7}
    pretty = logs.PrettyFormatter(coloured=False).format(record)
    assert pretty.endswith("INFO    got 3  tokens=7")


@pytest.mark.parametrize(
    ("style", "terminal", "pretty"),
    [("auto", True, True), ("auto", False, False), ("json", True, False), ("pretty", False, True)],
)
def test_log_style(monkeypatch, style, terminal, pretty):
    """Pretty on a terminal, one JSON object a line elsewhere, unless one of them is asked for."""
    stream = io.StringIO()
    stream.isatty = lambda: terminal  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stderr", stream)
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        logs.configure("info", style)
        logging.getLogger("kvasir.test").info("hello", extra={"tokens": 7})
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        logging.captureWarnings(capture=False)
    if pretty:
        assert "hello  tokens=7" in stream.getvalue()
    else:
        assert json.loads(stream.getvalue())["tokens"] == 7


async def test_wait_idle():
    """At once without requests, else with the last one's end; False when that takes too long."""
    lifecycle = Lifecycle(lambda _: None)
    assert await lifecycle.wait_idle(0.0)
    lifecycle.enter()
    lifecycle.enter()
    assert not await lifecycle.wait_idle(0.01)
    waiting = asyncio.create_task(lifecycle.wait_idle(10))
    lifecycle.leave()
    assert not waiting.done()
    lifecycle.leave()
    assert await waiting
