"""One client's choices between engine and text, without a process."""

import asyncio
import gc
import weakref
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

from kvasir_runtime.engine.async_engine import AsyncEngine
from kvasir_runtime.engine.detokenizer import Detokenizer
from kvasir_runtime.engine.messages import AbortSequences, EngineOutput, EngineRequest, FinishReason, StepOutputs
from kvasir_runtime.sampling_params import SamplingParams
from kvasir_runtime.server.generation import Generation, Prompt
from kvasir_runtime.server.rates import Rates
from kvasir_runtime.server.stream import DisconnectWatch


class Letters:
    """Token 97 is "a", and so on."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return "".join(map(chr, token_ids))


class Link:
    """What was sent to the engine."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.outputs = None

    def send(self, message: Any) -> None:
        self.sent.append(message)


def engine_without_process(link: Link) -> AsyncEngine:
    engine = AsyncEngine.__new__(AsyncEngine)
    engine.failure = None
    engine._link = cast("Any", link)
    engine._observer = None
    engine._streams, engine._unfinished, engine._waiting, engine._adapter_of = {}, {}, {}, {}
    engine._cut = set()
    engine.heartbeat = cast("Any", SimpleNamespace(step_finished=lambda now: None))
    return engine


def start(link: Link, n: int) -> tuple[AsyncEngine, Generation]:
    engine = engine_without_process(link)
    nothing = SimpleNamespace(enter=lambda: None, leave=lambda: None)
    service = SimpleNamespace(
        engine=engine,
        lifecycle=nothing,
        eos_token_ids=frozenset(),
        next_engine_id=lambda: "r",
        metrics=SimpleNamespace(request_finished=lambda *_, **__: None),
        rates=Rates(),
        args=SimpleNamespace(queue_timeout=None),
    )
    sampling = SamplingParams(n=n, stop=("bc",))
    make = lambda prompt: Detokenizer(cast("Any", Letters()), prompt.token_ids, stop=("bc",))  # noqa: E731
    return engine, Generation(cast("Any", service), [Prompt([97])], sampling, make)


def step(engine: AsyncEngine, *tokens: tuple[int, str, FinishReason | None]) -> None:
    outputs = [EngineOutput("r", [ord(letter)], index, reason) for index, letter, reason in tokens]
    engine._take_step(StepOutputs(outputs, cast("Any", None)), 1.0)


async def test_a_choice_that_a_stop_string_ended_is_no_longer_computed() -> None:
    """The engine hears of it at once; what was on its way is dropped, the sibling goes on to its own end."""
    link = Link()
    engine, generation = start(link, n=2)
    assert isinstance(link.sent[0], EngineRequest)
    reading = asyncio.create_task(generation.finish())
    for letters in ("ax", "bx", "cx"):
        step(engine, (0, letters[0], None), (1, letters[1], None))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert link.sent[1:] == [AbortSequences([("r", 0)])]
    step(engine, (0, "z", FinishReason.LENGTH), (1, "y", None))  # the first was on its way when it was ended
    step(engine, (1, "y", FinishReason.LENGTH))
    await reading
    assert [(choice.text, choice.finish_reason, len(choice.token_ids)) for choice in generation.choices] == [
        ("a", "stop", 3),
        ("xxxyy", "length", 5),
    ]
    generation.close()
    assert len(link.sent) == 2
    assert not engine._streams
    assert not engine._cut


async def test_the_last_choice_is_ended_with_its_request() -> None:
    """Nothing is left that waits: closing aborts the request as a whole."""
    link = Link()
    engine, generation = start(link, n=1)
    reading = asyncio.create_task(generation.finish())
    for letter in "bc":
        step(engine, (0, letter, None))
        await asyncio.sleep(0)
    await reading
    generation.close()
    assert [type(message).__name__ for message in link.sent] == ["EngineRequest", "AbortRequests"]


async def test_a_watch_that_was_stopped_leaves_nothing_behind() -> None:
    """No cycle: what a request held is freed at once, not with some later garbage collection."""

    class Request:
        async def receive(self) -> Any:
            await asyncio.Event().wait()

        def gone(self) -> None: ...

    request = Request()
    freed = weakref.ref(request)
    gc.disable()
    try:
        watch = DisconnectWatch(request.receive, request.gone)
        await asyncio.sleep(0)
        watch.stop()
        del watch, request
        for _ in range(3):  # the loop lets go of a task that was cancelled
            await asyncio.sleep(0)
        assert freed() is None
    finally:
        gc.enable()
