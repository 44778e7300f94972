"""Every family against transformers in float32: logits and greedy tokens, however the work is cut into steps."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from kvasir_runtime.config import CacheConfig, EngineConfig, SchedulerConfig
from kvasir_runtime.contract.memory import kv_bytes_per_token
from kvasir_runtime.engine.llm_engine import LLMEngine
from kvasir_runtime.sampling_params import SamplingParams
from kvasir_runtime.worker.loader import resolve
from tests.kvasir_runtime.models.families import FAMILIES, make_checkpoint, prompts, reference_greedy, reference_logits

GREEDY: Any = {"temperature": 0.0, "ignore_eos": True}


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(request.param)
    return make_checkpoint(request.param, folder), folder


def make_engine(folder: Path, *, budget: int = 256, num_blocks: int = 200, dtype: str = "float32") -> LLMEngine:
    """An engine with exactly `num_blocks` blocks of 16 tokens."""
    probe = EngineConfig(folder, dtype=dtype, num_threads=1, max_model_len=128)
    per_token = kv_bytes_per_token(resolve(probe).shape, dtype)
    return LLMEngine(
        EngineConfig(
            folder,
            dtype=dtype,
            num_threads=1,
            max_model_len=128,
            cache=CacheConfig(memory=num_blocks * 16 * per_token),
            scheduler=SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=budget),
        )
    )


@pytest.mark.parametrize("budget", [256, 13])
def test_prompt_and_decode_logits(checkpoint: tuple[Any, Path], budget: int) -> None:
    """Log-probabilities of prompt and output tokens are those of transformers, in one prefill or in chunks of 13."""
    model, folder = checkpoint
    engine = make_engine(folder, budget=budget)
    sampling = SamplingParams(**GREEDY, max_tokens=12, logprobs=5, prompt_logprobs=5)
    for prompt in prompts([3, 16, 50]):
        completion = engine.generate([prompt], sampling)[0][0]
        tokens = prompt + completion.token_ids
        expected = reference_logits(model, tokens).log_softmax(-1)
        assert completion.prompt_logprobs is not None
        reports = [*completion.prompt_logprobs[1:], *completion.logprobs]
        assert len(reports) == len(tokens) - 1
        for row, report in enumerate(reports):
            assert report is not None
            assert report.token_id == tokens[row + 1]
            ids = [report.token_id] + [token for token, _ in report.top]
            values = torch.tensor([report.logprob] + [value for _, value in report.top])
            torch.testing.assert_close(values, expected[row, ids], rtol=1e-4, atol=1e-4)


def test_greedy_tokens_with_prefix_hits_and_preemption(checkpoint: tuple[Any, Path]) -> None:
    """64 greedy tokens and their logits equal transformers' while requests share prefixes and preempt each other."""
    model, folder = checkpoint
    common, *tails = prompts([40, 5, 17, 24, 9])
    # With a window in every layer (Mistral) few blocks do: preemptions need a small cache and many that grow at once.
    windowed = resolve(EngineConfig(folder)).decoder.widest_window is not None
    batch = [common + tail for tail in tails] + prompts([1, 33, 2, 4, 6] if windowed else [1, 33], seed=1)
    engine = make_engine(folder, budget=48, num_blocks=9 if windowed else 26)
    completions = engine.generate(batch, SamplingParams(**GREEDY, max_tokens=64, logprobs=5))
    for prompt, (completion,) in zip(batch, completions, strict=True):
        assert completion.token_ids == reference_greedy(model, prompt, 64)
        expected = reference_logits(model, prompt + completion.token_ids).log_softmax(-1)[len(prompt) - 1 :]
        for row, report in enumerate(completion.logprobs):
            ids, values = zip(*report.top, strict=True)
            torch.testing.assert_close(torch.tensor(values), expected[row, list(ids)], rtol=1e-4, atol=1e-4)
    engine.core.check_integrity()
    stats = engine.core.stats()
    assert stats.preemptions > 0
    assert stats.prefix_hit_tokens > 0
    assert stats.blocks_active == 0


def test_bfloat16_is_as_near_as_transformers(checkpoint: tuple[Any, Path]) -> None:
    """Bound: the mean error of log-probabilities against float32 is at most 1.2 times that of transformers itself."""
    model, folder = checkpoint
    engine = make_engine(folder, dtype="bfloat16")
    narrow = copy.deepcopy(model).to(torch.bfloat16)
    ours, theirs = [], []
    for prompt in prompts([100, 100, 90]):
        completion = engine.generate([prompt], SamplingParams(**GREEDY, max_tokens=1, prompt_logprobs=0))[0][0]
        rows, targets = range(len(prompt) - 1), prompt[1:]
        exact = reference_logits(model, prompt).log_softmax(-1)[rows, targets]
        got = torch.tensor([entry.logprob for entry in completion.prompt_logprobs or [] if entry is not None])
        ours.append((got - exact).abs())
        theirs.append((reference_logits(narrow, prompt).log_softmax(-1)[rows, targets] - exact).abs())
    assert 0 < torch.cat(ours).mean() <= 1.2 * torch.cat(theirs).mean()
