"""What a step of the real engine costs beside a long queue, by the clock."""

import statistics
import time
from pathlib import Path

import pytest

from kvasir_runtime.config import CacheConfig, EngineConfig, SchedulerConfig
from kvasir_runtime.engine.engine_core import EngineCore
from kvasir_runtime.engine.messages import EngineRequest
from kvasir_runtime.sampling_params import SamplingParams

TINY_LLAMA = Path(__file__).parents[2] / "models" / "tiny-llama"
PAIRS = 100


def request(name: str, length: int, max_tokens: int) -> EngineRequest:
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    return EngineRequest(name, [3 + number % 500 for number in range(length)], sampling, time.monotonic())


def timed_step(core: EngineCore) -> float:
    """The shortest of three, as the first ones find the processor's caches full of what was done before."""

    def step() -> float:
        started = time.perf_counter()
        core.step()
        return time.perf_counter() - started

    return min(step() for _ in range(3))


@pytest.mark.slow
def test_a_thousand_queued_requests_slow_a_step_by_less_than_5_percent(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Steps with and without the queue take turns, so that both see the same machine; medians are compared."""
    core = EngineCore(
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
        core.add_request(request(f"running {number}", 16 + number, 900))
    while core.stats().waiting:
        core.step()
    alone, beside = [], []
    for pair in range(PAIRS):
        alone.append(timed_step(core))
        names = [f"{pair}.{number}" for number in range(1000)]
        for name in names:
            core.add_request(request(name, 16, 8))
        core.step()  # the head of the queue is hashed once
        beside.append(timed_step(core))
        assert core.stats().waiting == 1000
        core.abort_requests(names)
        core.step()
    usual, ratio = statistics.median(alone), statistics.median(beside) / statistics.median(alone)
    with capsys.disabled():
        print(f" a step takes {usual * 1e3:.2f} ms, beside 1,000 queued requests {ratio:.3f} times that")
    assert ratio < 1.05
