"""What a step of the real engine costs beside a long queue: in bytecode, which is exact, and in CPU time.

No clock on the wall is read: neighbours on a busy machine would be measured with it.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from kvasir_runtime.config import CacheConfig, EngineConfig, SchedulerConfig
from kvasir_runtime.engine.engine_core import EngineCore
from kvasir_runtime.engine.messages import EngineRequest
from kvasir_runtime.sampling_params import SamplingParams

TINY_LLAMA = Path(__file__).parents[2] / "models" / "tiny-llama"
CYCLE = 16
"""Steps in which each sequence fills one block: their cost in sum does not depend on where they begin."""

pytestmark = pytest.mark.slow


def request(name: str, length: int, max_tokens: int) -> EngineRequest:
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    return EngineRequest(name, [3 + number % 500 for number in range(length)], sampling, time.monotonic())


@pytest.fixture
def core() -> EngineCore:
    """All eight seats taken, for 900 tokens each."""
    made = EngineCore(
        EngineConfig(
            TINY_LLAMA,
            dtype="bfloat16",
            num_threads=1,
            max_model_len=1024,
            cache=CacheConfig(memory=64 << 20),
            scheduler=SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=256),
        )
    )
    for number in range(8):
        made.add_request(request(f"running {number}", 16 + number, 900))
    while made.stats().waiting:
        made.step()
    return made


@contextmanager
def queued(core: EngineCore, count: int) -> Iterator[None]:
    """So many requests wait as long as the block runs; the head of the queue has been looked at."""
    names = [str(number) for number in range(count)]
    for name in names:
        core.add_request(request(name, 16, 8))
    core.step()
    assert core.stats().waiting == count
    yield
    core.abort_requests(names)
    core.step()


def instructions(work: Callable[[], object]) -> int:
    """Bytecode instructions that `work` executes, in whatever module. Loops in C count as one."""
    count = 0

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def cycle(core: EngineCore) -> None:
    for _ in range(CYCLE):
        core.step()


def test_a_step_executes_no_more_when_the_queue_is_long(core: EngineCore) -> None:
    """10,000 waiting requests cost as many instructions as 1,000: less than 5 % more than none, for the head alone."""
    cycle(core)
    executed = {}
    for count in (0, 1_000, 10_000):
        with queued(core, count):
            executed[count] = instructions(lambda: cycle(core))
    assert executed[10_000] == executed[1_000]
    assert executed[1_000] < 1.05 * executed[0]


def test_a_thousand_queued_requests_slow_a_step_by_less_than_5_percent(
    core: EngineCore, capsys: pytest.CaptureFixture[str]
) -> None:
    """In CPU time of the engine's thread, loops in C included: 5 % for each thousand are 50 % for ten thousand.

    The shortest of many steps counts, as others evict this one's data from the processor's caches.
    """
    alone, beside = [], []
    for _ in range(5):
        alone += cpu_times(core)
        with queued(core, 10_000):
            beside += cpu_times(core)
    ratio = min(beside) / min(alone)
    with capsys.disabled():
        print(f" a step takes {min(alone) * 1e3:.2f} ms, beside 10,000 queued requests {ratio:.3f} times that")
    assert ratio < 1.5


def cpu_times(core: EngineCore) -> list[float]:
    """Seconds of CPU of this thread for each of a cycle's steps."""

    def timed() -> float:
        started = time.thread_time()
        core.step()
        return time.thread_time() - started

    return [timed() for _ in range(CYCLE)]
