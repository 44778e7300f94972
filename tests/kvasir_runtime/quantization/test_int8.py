"""int8 weights: the kernel against its oracle, and what they cost in perplexity."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from kvasir_runtime.config import CacheConfig, EngineConfig
from kvasir_runtime.engine.llm_engine import LLMEngine
from kvasir_runtime.huge_pages import Arena
from kvasir_runtime.kernels.cpu.library import Library
from kvasir_runtime.quantization.int8 import Int8Linear, int8_linear_oracle
from kvasir_runtime.sampling_params import SamplingParams
from tests.kvasir_runtime.kernels import variants
from tests.models.train_tiny_llama import corpus

TINY_LLAMA = Path(__file__).parents[2] / "models" / "tiny-llama"
TOLERANCE: dict[torch.dtype, Any] = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 1e-2},
}


@pytest.fixture(params=variants.params())
def library(request: pytest.FixtureRequest) -> Library:
    torch.set_num_threads(2)
    return variants.library(request.param)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 40])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 32), (70, 50), (256, 1000)])
def test_kernel(library: Library, rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    """All numbers of rows, and sizes that fill no panel, with a bias."""
    torch.manual_seed(0)
    weight, bias = torch.randn(outputs, inputs, dtype=dtype), torch.randn(outputs, dtype=dtype)
    x = torch.randn(rows, inputs, dtype=dtype) * 3
    got, want = Int8Linear(library, Arena(), weight, bias)(x), int8_linear_oracle(x, weight, bias)
    torch.testing.assert_close(got, want, **TOLERANCE[dtype])


def test_a_row_of_zeros_gives_the_bias(library: Library) -> None:
    """Nothing is divided by zero, in activations or in weights."""
    weight, bias = torch.zeros(33, 64), torch.arange(33.0)
    out = Int8Linear(library, Arena(), weight, bias)(torch.zeros(2, 64))
    assert torch.equal(out, bias.expand(2, 33))


def test_a_row_does_not_depend_on_its_neighbours(library: Library) -> None:
    """The same row gives the same bits in every batch."""
    torch.manual_seed(0)
    linear, x = Int8Linear(library, Arena(), torch.randn(100, 64), None), torch.randn(11, 64)
    together = linear(x)
    assert all(torch.equal(linear(x[row : row + 1])[0], together[row]) for row in range(11))


def test_perplexity_of_the_committed_model() -> None:
    """Within 1 % of bfloat16's, on the docstrings that were held out when it was trained."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(TINY_LLAMA / "tokenizer.json"))
    prompts = [tokenizer.encode(entry.doc).ids[:500] for entry in corpus.docstrings() if entry.held_out]
    assert sum(map(len, prompts)) > 5000
    exact, quantized = (perplexity(prompts, quantization) for quantization in ("none", "int8"))
    print(f"perplexity: bfloat16 {exact:.3f}, int8 {quantized:.3f}, {100 * (quantized / exact - 1):+.2f} %")
    assert quantized == pytest.approx(exact, rel=0.01)
    assert quantized != exact


def perplexity(prompts: list[list[int]], quantization: str) -> float:
    engine = LLMEngine(
        EngineConfig(
            TINY_LLAMA,
            dtype="bfloat16",
            quantization=quantization,
            num_threads=1,
            max_model_len=512,
            cache=CacheConfig(memory=8 << 20),
        )
    )
    completions = engine.generate(prompts, SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0))
    values = [entry.logprob for (one,) in completions for entry in one.prompt_logprobs or [] if entry is not None]
    assert len(values) == sum(len(prompt) - 1 for prompt in prompts)
    return math.exp(-sum(values) / len(values))
