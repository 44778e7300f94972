"""Adapters against weights merged by peft: every family, ranks and scales, one batch of many, bf16 and int8."""

from pathlib import Path
from typing import Any

import pytest
import torch

from kvasir_runtime.sampling_params import SamplingParams
from tests.kvasir_runtime.lora.adapters import (
    EVERY_LINEAR,
    LEGAL,
    PIRATE,
    TINY_LLAMA,
    AdapterEngine,
    make_adapter,
    merged,
)
from tests.kvasir_runtime.models.families import FAMILIES, make_checkpoint, prompts, reference_greedy, reference_logits

GREEDY: Any = {"temperature": 0.0, "ignore_eos": True}
ADAPTERS: dict[str, dict[str, Any]] = {
    "every-linear": {"r": 8, "lora_alpha": 16},
    "rank-1": {"r": 1, "lora_alpha": 1, "target_modules": ["v_proj", "down_proj"]},
    "rank-33-rslora": {"r": 33, "lora_alpha": 8, "use_rslora": True, "target_modules": ["k_proj", "o_proj", "up_proj"]},
    "rank-256": {"r": 256, "lora_alpha": 64, "target_modules": ["q_proj", "gate_proj"]},
}


@pytest.fixture(scope="module", params=["llama", "llama-tied-biased", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(request.param)
    return make_checkpoint(request.param, folder), folder


@pytest.mark.parametrize("budget", [256, 13])
def test_logits_are_those_of_merged_weights(checkpoint: tuple[Any, Path], tmp_path: Path, budget: int) -> None:
    """Four adapters and the base model in one batch, prefill in chunks beside decode: within 1e-4 of peft's merge."""
    model, folder = checkpoint
    engine = AdapterEngine(folder, budget=budget)
    references: dict[str | None, Any] = {None: model}
    for seed, (kind, config) in enumerate(ADAPTERS.items()):
        adapter = make_adapter(model, tmp_path / kind, seed=seed, **config)
        engine.load(kind, adapter)
        references[kind] = merged(model, adapter)
    sampling = SamplingParams(**GREEDY, max_tokens=8, logprobs=5, prompt_logprobs=5)
    requests = list(zip([None, *ADAPTERS, *ADAPTERS], prompts([20, 3, 16, 50, 31, 33, 7, 18, 40]), strict=True))
    for (name, prompt), completion in zip(requests, engine.generate(requests, sampling), strict=True):
        tokens = prompt + completion.token_ids
        expected = reference_logits(references[name], tokens).log_softmax(-1)
        assert completion.prompt_logprobs is not None
        for row, report in enumerate([*completion.prompt_logprobs[1:], *completion.logprobs]):
            assert report is not None
            ids = [report.token_id] + [token for token, _ in report.top]
            values = torch.tensor([report.logprob] + [value for _, value in report.top])
            torch.testing.assert_close(values, expected[row, ids], rtol=1e-4, atol=1e-4)
    engine.core.check_integrity()


def test_adapters_change_the_output(checkpoint: tuple[Any, Path], tmp_path: Path) -> None:
    """The comparison above would notice an adapter that is not applied: its effect is far larger than the tolerance."""
    model, _ = checkpoint
    prompt = prompts([30])[0]
    for name, config in ADAPTERS.items():
        changed = merged(model, make_adapter(model, tmp_path / name, **config))
        difference = reference_logits(changed, prompt).log_softmax(-1) - reference_logits(model, prompt).log_softmax(-1)
        assert difference.abs().max() > 0.05, name


@pytest.mark.parametrize("family", ["mixtral"])
def test_attention_of_a_mixture_of_experts(family: str, tmp_path: Path) -> None:
    """Where the MLP is made of experts, adapters of attention work."""
    assert family in FAMILIES
    model = make_checkpoint(family, tmp_path / "model")
    adapter = make_adapter(model, tmp_path / "adapter", target_modules=EVERY_LINEAR[:4])
    engine = AdapterEngine(tmp_path / "model")
    engine.load("a", adapter)
    prompt = prompts([20])[0]
    tokens = engine.generate([("a", prompt)], SamplingParams(**GREEDY, max_tokens=12))[0].token_ids
    assert tokens == reference_greedy(merged(model, adapter), prompt, 12)


def test_committed_adapters_with_shared_prefixes_and_preemption() -> None:
    """Both adapters and the base model: 48 greedy tokens are those of the merged models, under preemption and hits."""
    from transformers import LlamaForCausalLM

    from kvasir_runtime.config import CacheConfig

    torch.set_num_threads(1)
    model = LlamaForCausalLM.from_pretrained(TINY_LLAMA, dtype=torch.float32).eval()
    engine = AdapterEngine(TINY_LLAMA, cache=CacheConfig(memory=26 * 16 * 4096), budget=48)
    engine.load("pirate", PIRATE)
    engine.load("legal", LEGAL)
    references = {None: model, "pirate": merged(model, PIRATE), "legal": merged(model, LEGAL)}
    common = [1, *range(300, 340)]
    requests = [(name, [*common, tail]) for tail in (5, 9) for name in references]
    completions = engine.generate(requests, SamplingParams(**GREEDY, max_tokens=48))
    for (name, prompt), completion in zip(requests, completions, strict=True):
        assert completion.token_ids == reference_greedy(references[name], prompt, 48), name
    stats = engine.core.stats()
    assert stats.preemptions > 0
    assert stats.prefix_hit_tokens > 0
    engine.core.check_integrity()


def test_nobody_finds_blocks_of_another_adapter() -> None:
    """The same prompt is cached under each adapter by itself."""
    engine = AdapterEngine(TINY_LLAMA)
    engine.load("pirate", PIRATE)
    engine.load("legal", LEGAL)
    prompt, sampling = [1, *range(300, 350)], SamplingParams(**GREEDY, max_tokens=1)
    cached = [engine.generate([(name, prompt)], sampling)[0].cached_tokens for name in (None, "pirate", "legal") * 2]
    assert cached == [0, 0, 0, 48, 48, 48]


@pytest.mark.parametrize(("dtype", "quantization"), [("bfloat16", "none"), ("bfloat16", "int8"), ("float32", "int8")])
def test_other_bases(dtype: str, quantization: str) -> None:
    """Log-probabilities under an adapter are nearer to the merged float32 model's than the base's are, by far."""
    from transformers import LlamaForCausalLM

    torch.set_num_threads(1)
    model = LlamaForCausalLM.from_pretrained(TINY_LLAMA, dtype=torch.float32).eval()
    engine = AdapterEngine(TINY_LLAMA, dtype=dtype, quantization=quantization)
    engine.load("pirate", PIRATE)
    prompt = [1, *range(300, 360)]
    sampling = SamplingParams(**GREEDY, max_tokens=1, prompt_logprobs=0)
    completion, plain = engine.generate([("pirate", prompt), (None, prompt)], sampling)
    rows, targets = range(len(prompt) - 1), prompt[1:]
    exact = reference_logits(merged(model, PIRATE), prompt).log_softmax(-1)[rows, targets]
    errors = []
    for one in (completion, plain):
        got = torch.tensor([entry.logprob for entry in one.prompt_logprobs or [] if entry is not None])
        errors.append((got - exact).abs().mean())
    assert errors[0] < 0.15
    assert errors[1] > 4 * errors[0]
