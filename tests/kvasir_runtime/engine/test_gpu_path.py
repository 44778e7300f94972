"""The engine on the GPU's kernels, which run in Triton's interpreter where there is no GPU, against the CPU path."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kvasir_runtime.config import CacheConfig, EngineConfig, SchedulerConfig
from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.engine.llm_engine import Completion, LLMEngine
from kvasir_runtime.sampling_params import SamplingParams
from kvasir_runtime.worker.device import INTERPRETER, find_device
from tests.kvasir_runtime.kernels.gpu.device import DEVICE

TINY_LLAMA = Path(__file__).parents[2] / "models" / "tiny-llama"
GPU = "cuda" if DEVICE.type == "cuda" else INTERPRETER


def engine(device: str, *, budget: int = 48, blocks: int = 64) -> LLMEngine:
    return LLMEngine(
        EngineConfig(
            TINY_LLAMA,
            dtype="float32",
            device=device,
            num_threads=1,
            max_model_len=96,
            cache=CacheConfig(memory=blocks * 16 * 2 * 4 * 2 * 64 * 4),
            scheduler=SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=budget),
        )
    )


def greedy(one: LLMEngine, prompts: list[list[int]], count: int) -> list[Completion]:
    sampling = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
    return [completion for (completion,) in one.generate(prompts, sampling)]


def test_greedy_tokens_are_those_of_the_cpu_path() -> None:
    """A prompt in two chunks beside another that decodes, and a prefix that is hit."""
    first, second = [1, 50, 60, 70], [1, *range(40, 60)]
    expected, got = (
        greedy(one, [first, second], 4) + greedy(one, [[*second[:18], 9]], 2)
        for one in (engine("cpu", budget=16), engine(GPU, budget=16))
    )
    assert [one.token_ids for one in got] == [one.token_ids for one in expected]
    assert got[2].cached_tokens == expected[2].cached_tokens == 16


@pytest.mark.slow
def test_random_choices_repeat_and_lists_of_likely_tokens_are_those_of_the_cpu_path() -> None:
    """Drawn on the device they depend on the seed alone; with log-probabilities the host draws as it always does."""
    one, other = engine(GPU), engine("cpu")
    drawn = SamplingParams(seed=7, temperature=0.9, top_k=50, top_p=0.9, max_tokens=3, ignore_eos=True)
    told = replace(drawn, logprobs=2)
    prompt = [1, 50, 60, 70]
    alone, listed = one.generate([prompt, prompt], [drawn, told])
    assert one.generate([prompt], drawn)[0][0].token_ids == alone[0].token_ids
    assert listed[0].token_ids == other.generate([prompt], told)[0][0].token_ids


@pytest.mark.slow
def test_long_greedy_texts_are_those_of_the_cpu_path() -> None:
    """Sequences that grow into further blocks, beside each other and after a preemption."""
    prompts = [[1, 50, 60, 70], [1, *range(40, 60)], [1, *range(100, 112)]]
    small = engine(GPU, blocks=8)
    expected, got = greedy(engine("cpu"), prompts, 21), greedy(small, prompts, 21)
    assert small.core.stats().preemptions > 0
    assert [one.token_ids for one in got] == [one.token_ids for one in expected]


def test_a_gpu_that_is_not_there_is_an_accelerator_error() -> None:
    """`cuda` on a machine without one says what to look at."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(KvasirError, match="finds no GPU") as error:
        find_device("cuda")
    assert error.value.report.cause is Cause.ACCELERATOR_ERROR


def test_devices_nobody_knows_are_refused() -> None:
    """By name."""
    with pytest.raises(KvasirError, match="device must be one of auto, cpu, cuda, got tpu"):
        find_device("tpu")
