"""All layers in one call: the bits of one call after the other."""

from pathlib import Path

import pytest
import torch

from kvasir_runtime.attention.metadata import AttentionMetadata, Sequences
from kvasir_runtime.config import EngineConfig
from kvasir_runtime.kernels.cpu.layers import FusedLayers
from kvasir_runtime.models.decoder import DecoderModel
from kvasir_runtime.sampling_params import SamplingParams
from kvasir_runtime.worker.kv_cache import KVCache
from kvasir_runtime.worker.loader import load_model
from tests.kvasir_runtime.lora.adapters import AdapterEngine, make_adapter
from tests.kvasir_runtime.models.families import make_checkpoint, prompts

TINY_LLAMA = Path(__file__).parents[2] / "models" / "tiny-llama"
BLOCK = 16


def loaded(quantization: str) -> DecoderModel:
    torch.set_num_threads(2)
    model, _ = load_model(EngineConfig(TINY_LLAMA, dtype="bfloat16", quantization=quantization, num_threads=2), None)
    return model


def step(decodes: list[int], prefills: list[tuple[int, int]]) -> AttentionMetadata:
    """Decode rows by length; prefill rows as (length, how many of them are the step's own). Blocks in any order."""
    lengths = [*decodes, *(length for length, _ in prefills)]
    tables = torch.randperm(len(lengths) * 16)[: len(lengths) * 16].view(len(lengths), 16).to(torch.int32)
    positions: list[int] = []
    slots: list[int] = []
    starts = [0]
    for number, (length, own) in enumerate([*((length, 1) for length in decodes), *prefills]):
        where = range(length - own, length)
        positions += where
        slots += [int(tables[number, at // BLOCK]) * BLOCK + at % BLOCK for at in where]
        if number >= len(decodes):
            starts.append(starts[-1] + own)
    counts = torch.tensor(lengths, dtype=torch.int32)
    singles = len(decodes)
    return AttentionMetadata(
        torch.tensor(slots),
        torch.tensor(positions),
        Sequences(tables[:singles], counts[:singles]),
        Sequences(tables[singles:], counts[singles:]),
        torch.tensor(starts, dtype=torch.int32),
    )


def filled_cache(model: DecoderModel) -> KVCache:
    config = model.config
    cache = KVCache(
        num_layers=config.num_layers,
        num_blocks=128,
        num_kv_heads=config.num_kv_heads,
        block_size=BLOCK,
        head_dim=config.head_dim,
        dtype=torch.bfloat16,
    )
    generator = torch.Generator().manual_seed(7)
    for layer in cache.layers:
        layer.copy_(torch.randn(layer.shape, generator=generator))
    return cache


@pytest.mark.parametrize(
    ("decodes", "prefills"),
    [([1], []), ([5, 33, 200], []), ([], [(20, 20)]), ([7] * 17, [(40, 9), (100, 60)])],
    ids=["one", "decode", "prefill", "mixed"],
)
@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_the_bits_are_those_of_one_layer_after_the_other(
    quantization: str, decodes: list[int], prefills: list[tuple[int, int]]
) -> None:
    model = loaded(quantization)
    if model.fused is None:
        pytest.skip("no kernels for bfloat16 on this CPU")
    torch.manual_seed(1)
    rows = step(decodes, prefills)
    ids = torch.randint(0, model.config.vocab_size, (len(rows.positions_T),))
    caches = filled_cache(model), filled_cache(model)
    fused = model(ids, caches[0].layers, rows)
    model.fused = None
    assert torch.equal(fused, model(ids, caches[1].layers, rows))
    assert all(torch.equal(*pair) for pair in zip(caches[0].layers, caches[1].layers, strict=True))


def test_a_layer_of_another_kind_is_computed_step_by_step() -> None:
    model = loaded("none")
    if model.fused is None:
        pytest.skip("no kernels for bfloat16 on this CPU")
    assert FusedLayers.of(model, None) is not None
    model.layers[-1].attention.q_norm = model.layers[-1].attention_norm
    assert FusedLayers.of(model, None) is None


def test_adapters_are_added_as_one_by_one(tmp_path: Path) -> None:
    """Greedy tokens and their log-probabilities of several adapters and none, in prefill and decode, in one batch."""
    model = make_checkpoint("llama", tmp_path / "model")
    names = {"few": make_adapter(model, tmp_path / "few", seed=1, strength=0.6, r=4)}
    names["many"] = make_adapter(model, tmp_path / "many", seed=2, strength=0.6, r=48)
    asks = [(name, prompt) for name in (None, "few", "many") for prompt in prompts([5, 40], seed=3)]
    answers = []
    for fused in (True, False):
        engine = AdapterEngine(tmp_path / "model", dtype="bfloat16")
        for name, folder in names.items():
            engine.load(name, folder)
        runner_model = engine.core._runner.model
        if runner_model.fused is None:
            pytest.skip("no kernels for bfloat16 on this CPU")
        if not fused:
            runner_model.fused = None
        found = engine.generate(asks, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=1))
        answers.append([(each.token_ids, each.logprobs) for each in found])
    assert answers[0] == answers[1]
    assert len({tuple(tokens) for tokens, _ in answers[0][1::2]}) == 3, "adapters must tell"
