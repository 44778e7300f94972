"""The engine on the GPU's kernels, which run in Triton's interpreter where there is no GPU, against the CPU path."""

import os
from pathlib import Path

import pytest
import torch

from kvasir_runtime.config import CacheConfig, EngineConfig, SchedulerConfig
from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.engine.llm_engine import LLMEngine
from kvasir_runtime.sampling_params import SamplingParams
from kvasir_runtime.worker.device import find_device

TINY_LLAMA = Path(__file__).parents[2] / "models" / "tiny-llama"
GPU = "interpreter" if "TRITON_INTERPRET" in os.environ else "cuda"
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)


def engine(device: str, *, budget: int = 48, blocks: int = 64) -> LLMEngine:
    return LLMEngine(
        EngineConfig(
            TINY_LLAMA,
            dtype="float32",
            device=device,
            num_threads=1,
            max_model_len=256,
            cache=CacheConfig(memory=blocks * 16 * 2 * 4 * 2 * 64 * 4),
            scheduler=SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=budget),
        )
    )


def test_greedy_tokens_are_those_of_the_cpu_path() -> None:
    """Prompts in chunks beside decodes, a prefix hit, and several sequences in one decode step."""
    shared = [1, *range(40, 80)]
    prompts = [[1, 50, 60, 70], [*shared, 5, 6], [1, *range(100, 170)], [*shared, 9]]
    expected, got = (
        [one.generate(prompts[:3], GREEDY), one.generate(prompts[3:], GREEDY)] for one in (engine("cpu"), engine(GPU))
    )
    assert [c.token_ids for group in got for (c,) in group] == [c.token_ids for group in expected for (c,) in group]
    assert got[1][0][0].cached_tokens == expected[1][0][0].cached_tokens == 32


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
