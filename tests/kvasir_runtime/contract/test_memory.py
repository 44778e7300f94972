"""The memory formula: worked numbers, the errors with the number that would do, and what the engine really takes."""

from dataclasses import replace
from typing import Any

import pytest

from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.contract.memory import (
    PROCESS_BYTES,
    MemoryQuestion,
    ModelShape,
    activation_bytes,
    kv_bytes_per_token,
    plan_memory,
    resolve_dtype,
    table_bytes,
    weight_bytes,
)

GIB = 1024**3

LLAMA_8B: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


KINDS = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma2", "gemma3_text")


def question(**changes: Any) -> MemoryQuestion:
    defaults = MemoryQuestion(
        shape=ModelShape.from_hf_config(LLAMA_8B),
        dtype="bfloat16",
        quantization="none",
        kv_dtype="bfloat16",
        block_size=16,
        max_model_len=8192,
        max_num_seqs=8,
        max_num_batched_tokens=2048,
        limit=40 * GIB,
        utilization=0.9,
        device="cuda",
    )
    return replace(defaults, **changes)


def test_llama_8b_by_hand() -> None:
    """8.03 billion parameters in bf16, 128 KiB of KV a token."""
    shape = ModelShape.from_hf_config(LLAMA_8B)
    layer = 4096 * (4096 + 2 * 1024 + 4096 + 3 * 14336)
    parameters = 32 * layer + 2 * 128256 * 4096
    norms = 65 * 4096
    assert weight_bytes(shape, "bfloat16", device="cuda") == 2 * parameters + 4 * norms
    assert kv_bytes_per_token(shape, "bfloat16") == 128 * 1024
    assert kv_bytes_per_token(shape, "int8", tensor_parallel=2) == 32 * 1024
    assert kv_bytes_per_token(shape, "bfloat16", tensor_parallel=16) == 16 * 1024  # a KV head is never split


def test_int8_halves_the_projections_but_not_the_embedding() -> None:
    """One byte a weight, eight bytes an output, two bytes an entry of the embedding."""
    shape = ModelShape.from_hf_config(LLAMA_8B)
    projections = shape.linear_parameters + shape.embedding_parameters
    outputs = shape.linear_outputs + shape.vocab_size
    expected = projections + 8 * outputs + 2 * shape.embedding_parameters + 4 * 65 * 4096
    assert weight_bytes(shape, "bfloat16", "int8") == expected


def test_biases_and_further_norms_count() -> None:
    """Qwen 2: biases on q, k and v; Qwen 3: norms of heads; Gemma 2: four norms a layer; Gemma 3: both."""
    config = LLAMA_8B | {"num_hidden_layers": 2, "head_dim": 128}
    shapes = {kind: ModelShape.from_hf_config(config | {"model_type": kind}) for kind in KINDS}
    assert {kind: shape.bias_parameters for kind, shape in shapes.items() if shape.bias_parameters} == {
        "qwen2": 2 * (4096 + 2 * 1024)
    }
    heads = {"qwen3": 2 * 128, "gemma3_text": 2 * 128}
    for kind, shape in shapes.items():
        layer = (4 if kind.startswith("gemma") else 2) * 4096 + heads.get(kind, 0)
        assert shape.norm_parameters == 2 * layer + 4096, kind
    biased = ModelShape.from_hf_config(config | {"attention_bias": True, "mlp_bias": True})
    assert biased.bias_parameters == 2 * (4096 + 2 * 1024 + 4096 + 2 * 14336 + 4096)
    plain, quantized = (weight_bytes(biased, "bfloat16", method) for method in ("none", "int8"))
    without = ModelShape.from_hf_config(config)
    assert plain - weight_bytes(without, "bfloat16") == 2 * biased.bias_parameters
    assert quantized - weight_bytes(without, "bfloat16", "int8") == 4 * biased.bias_parameters


def test_tables_by_hand() -> None:
    """Rotary tables once; tokens, block table and biases for each sequence; Gemma 3 has two rotary tables."""
    shape = ModelShape.from_hf_config(LLAMA_8B)
    sequence = 4 * 8193 + 4 * 512 + 64 * 1024 + 3 * 128256 // 8
    assert table_bytes(shape, 8, 8192, 16) == 4 * 8192 * 128 + 8 * sequence + 32 * 8 * 8193
    assert table_bytes(shape, 128, 8192, 16) == 4 * 8192 * 128 + 128 * sequence + 32 * 2**18
    local = ModelShape.from_hf_config(LLAMA_8B | {"model_type": "gemma3_text", "head_dim": 128})
    assert table_bytes(local, 8, 8192, 16) - table_bytes(shape, 8, 8192, 16) == 4 * 8192 * 128


@pytest.mark.parametrize(
    ("asked", "stored", "device", "expected"),
    [
        ("auto", "float16", "cpu", "bfloat16"),
        ("auto", "float16", "cuda", "float16"),
        ("auto", "float32", "cpu", "float32"),
        ("float16", "float16", "cpu", "float16"),
    ],
)
def test_the_type_that_is_taken(asked: str, stored: str, device: str, expected: str) -> None:
    """One rule for engine, planner and `inspect`."""
    assert resolve_dtype(asked, stored, device) == expected


def test_the_rest_of_the_limit_becomes_blocks() -> None:
    """Weights, activations, process and KV together are the limit's share, to within one block."""
    plan = plan_memory(question())
    block = 16 * plan.kv_bytes_per_token
    taken = plan.weights_bytes + plan.table_bytes + plan.activation_bytes + PROCESS_BYTES + plan.kv_bytes
    assert 0 <= int(40 * GIB * 0.9) - taken < block
    assert plan.kv_tokens == (plan.num_blocks - 1) * 16
    assert plan.concurrent_sequences(8192) == (plan.num_blocks - 1) // 512


def test_explicit_kv_memory_is_taken_exactly() -> None:
    """`kv_cache_memory` decides; what is left over stays free."""
    plan = plan_memory(question(kv_cache_memory=2 * GIB))
    assert plan.num_blocks == 2 * GIB // (16 * 128 * 1024)


def test_cpu_takes_no_more_than_all_sequences_need() -> None:
    """On CPU the cache is bounded by max_num_seqs sequences, and by 4 GiB where nobody limited the memory."""
    small = question(device="cpu", max_num_seqs=2, max_model_len=1024)
    assert plan_memory(small).num_blocks == 2 * 64 + 1
    unlimited = question(device="cpu", max_num_seqs=128, limited=False, limit=200 * GIB)
    assert plan_memory(unlimited).kv_bytes == 4 * GIB
    limited = question(device="cpu", max_num_seqs=128, limited=True, limit=200 * GIB)
    assert plan_memory(limited).kv_bytes > 100 * GIB


def test_weights_that_do_not_fit_are_refused_with_the_number() -> None:
    """The error says the limit that would do, and that limit gets further."""
    with pytest.raises(KvasirError, match="weights") as failure:
        plan_memory(question(limit=10 * GIB))
    assert failure.value.report.cause is Cause.OUT_OF_MEMORY_WEIGHTS
    needed = failure.value.report.detail["needed"]
    with pytest.raises(KvasirError) as failure:
        plan_memory(question(limit=int(needed / 0.9) + 2))
    assert failure.value.report.cause is Cause.OUT_OF_MEMORY_KV_CACHE


@pytest.mark.parametrize("explicit", [True, False])
def test_a_cache_too_small_for_one_sequence_is_refused_with_the_number(explicit: bool) -> None:
    """513 blocks (one is the null block) hold 8192 tokens; the number in the error is just enough."""
    block = 16 * 128 * 1024
    shape = ModelShape.from_hf_config(LLAMA_8B)
    taken = (
        weight_bytes(shape, "bfloat16", device="cuda")
        + table_bytes(shape, 8, 8192, 16)
        + activation_bytes(shape, "bfloat16", 2048, 8)
        + PROCESS_BYTES
    )
    small: dict[str, Any] = (
        {"kv_cache_memory": 512 * block} if explicit else {"limit": taken + 512 * block, "utilization": 1.0}
    )
    asked = question(**small)
    with pytest.raises(KvasirError, match="8192") as failure:
        plan_memory(asked)
    report = failure.value.report
    assert (report.cause, report.detail["needed"]) == (Cause.OUT_OF_MEMORY_KV_CACHE, 513 * block)
    assert f"lower max_model_len to at most {511 * 16}" in report.remedy
    enough: dict[str, Any] = {"kv_cache_memory": 513 * block} if explicit else {"limit": taken + 513 * block}
    assert plan_memory(replace(asked, **enough)).num_blocks == 513


def test_kv_memory_beyond_the_limit_is_refused() -> None:
    """An explicit cache that cannot be held beside the weights is refused before anything is loaded."""
    with pytest.raises(KvasirError, match="kv_cache_memory 30Gi is more than"):
        plan_memory(question(kv_cache_memory=30 * GIB))


@pytest.mark.parametrize(("key", "value"), [("hidden_size", None), ("num_hidden_layers", 0), ("vocab_size", "many")])
def test_a_bad_config_names_the_key(key: str, value: object) -> None:
    """The operator shows this message as it is."""
    with pytest.raises(ValueError, match=key):
        ModelShape.from_hf_config({**LLAMA_8B, key: value})
