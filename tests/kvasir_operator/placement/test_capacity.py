"""What services take: public models against numbers counted by hand, and what is said where one does not fit."""

import re
from dataclasses import replace
from typing import Any

import pytest

from kvasir_operator.api.v1alpha1 import InferenceServiceSpec
from kvasir_operator.placement.capacity import (
    Fit,
    Misfit,
    engine_args,
    fits,
    largest,
    least_memory,
    memory_limit,
    memory_question,
    plan_capacity,
)
from kvasir_operator.resources.quantities import times
from kvasir_operator.settings import Settings
from kvasir_runtime.contract.engine_args import EngineArgs
from kvasir_runtime.contract.memory import PROCESS_BYTES, ModelShape, activation_bytes, table_bytes
from kvasir_runtime.contract.quantities import parse_bytes
from tests.kvasir_operator.placement.models import BY_NAME, MODELS, PublicModel

GIB = 1024**3
A100_40, A100_80, H200 = 40 * GIB, 80 * GIB, 141 * GIB


def spec(
    model: dict[str, Any] | None = None, engine: dict[str, Any] | None = None, **more: Any
) -> InferenceServiceSpec:
    given = {"model": {"source": {"uri": "hf://org/model"}, **(model or {})}, "engine": engine or {}}
    return InferenceServiceSpec.model_validate(given | {"accelerator": {"count": 1}} | more)


def shape(name: str) -> ModelShape:
    return ModelShape.from_hf_config(BY_NAME[name].config)


def fit(planned: Fit | Misfit) -> Fit:
    assert isinstance(planned, Fit), planned
    return planned


def misfit(planned: Fit | Misfit) -> Misfit:
    assert isinstance(planned, Misfit), planned
    return planned


@pytest.mark.parametrize("model", MODELS, ids=[model.name for model in MODELS])
class TestPublicModels:
    """On one device that is large enough, in the checkpoint's bfloat16."""

    def test_the_weights_are_two_bytes_for_each_parameter(self, model: PublicModel) -> None:
        """Norms are kept in float32."""
        planned = fit(plan_capacity(spec(), ModelShape.from_hf_config(model.config), 400 * GIB)).plan
        assert planned.weights_bytes == 2 * (model.parameters - model.norms) + 4 * model.norms
        assert planned.weights_bytes == pytest.approx(2 * model.parameters, rel=2e-4)

    def test_a_token_takes_keys_and_values_of_every_layer(self, model: PublicModel) -> None:
        planned = fit(plan_capacity(spec(), ModelShape.from_hf_config(model.config), 400 * GIB)).plan
        assert planned.kv_bytes_per_token == model.kv_bytes_per_token

    def test_weights_tables_activations_process_and_cache_are_the_devices_share(self, model: PublicModel) -> None:
        """No byte is planned twice, and less than a block is left."""
        public = ModelShape.from_hf_config(model.config)
        planned = fit(plan_capacity(spec(), public, 400 * GIB)).plan
        activations = activation_bytes(public, "bfloat16", 2048, 128)
        tables = table_bytes(public, 128, public.max_position, 16)
        taken = planned.weights_bytes + tables + activations + PROCESS_BYTES + planned.kv_bytes
        assert 0 <= int(400 * GIB * 0.9) - taken < 16 * model.kv_bytes_per_token

    def test_the_least_memory_fits_and_a_mebibyte_less_does_not(self, model: PublicModel) -> None:
        question = memory_question(spec(), ModelShape.from_hf_config(model.config), GIB // 4)
        least = least_memory(question)
        assert least is not None
        assert fits(replace(question, limit=least))
        assert not fits(replace(question, limit=least - 1024**2))


FITS = [
    ("Llama-3.2-1B", {}, A100_40, True),
    ("Llama-3.1-8B", {"maxModelLen": 8192}, 24 * GIB, True),
    ("Llama-3.1-8B", {}, 24 * GIB, False),  # 128 Ki tokens of KV cache are 16 GiB
    ("Llama-3.1-8B", {}, A100_40, True),
    ("Llama-3.1-70B", {"maxModelLen": 8192}, A100_80, False),  # 131 GiB of weights
    ("Llama-3.1-70B", {"maxModelLen": 8192}, H200, False),
    ("Llama-3.1-70B", {"maxModelLen": 8192, "quantization": "int8"}, A100_80, True),
    ("Mixtral-8x7B-v0.1", {"maxModelLen": 8192}, A100_80, False),
    ("Mixtral-8x7B-v0.1", {"maxModelLen": 8192}, H200, True),
    ("Qwen2.5-72B", {"maxModelLen": 8192}, H200, False),
    ("Gemma-2-27B", {}, A100_80, True),
    ("Gemma-2-27B", {}, A100_40, False),
]


@pytest.mark.parametrize(("name", "model", "memory", "expected"), FITS)
def test_who_fits_where(name: str, model: dict[str, Any], memory: int, expected: bool) -> None:
    assert isinstance(plan_capacity(spec(model), shape(name), memory), Fit) == expected


def test_the_status_holds_the_plan() -> None:
    """24 GiB x 0.9 less 15.0 GiB of weights leave 5.5 GiB of cache: 5 sequences of 8192 tokens at 1 GiB each."""
    planned = fit(plan_capacity(spec({"maxModelLen": 8192}), shape("Llama-3.1-8B"), 24 * GIB))
    status = planned.to_status()
    assert status.weights == 16_061_054_976
    assert status.kv_bytes_per_token == 131_072
    assert status.kv_tokens == planned.plan.kv_tokens
    assert (status.max_concurrent_sequences, status.source) == (5, "planned")


def test_a_misfit_says_the_numbers_and_what_would_fit() -> None:
    """Llama 3.1 8B with its whole context on 24 GiB."""
    told = misfit(plan_capacity(spec(), shape("Llama-3.1-8B"), 24 * GIB)).message
    assert told.startswith("one sequence of max_model_len 131072 needs 16Gi of KV cache, 5.")
    assert re.search(r"what would fit: spec\.model\.maxModelLen at most \d+", told)
    assert "a device with memory of at least " in told


def test_what_cannot_fit_at_any_length_asks_for_fewer_bytes_or_more_memory() -> None:
    told = misfit(plan_capacity(spec({"maxModelLen": 8192}), shape("Llama-3.1-70B"), A100_80))
    assert told.ways[0] == "spec.model.quantization int8"
    assert len(told.ways) == 2
    assert told.problem.startswith("weights (131Gi), activations (")


def applied(way: str, service: dict[str, Any], memory: int) -> tuple[dict[str, Any], int]:
    """The service, or the device, after one proposed change."""
    model, engine = service["model"], service["engine"]
    if match := re.fullmatch(r"spec\.(model|engine)\.(\w+) at most (\d+)", way):
        part = model if match[1] == "model" else engine
        return {**service, match[1]: {**part, match[2]: int(match[3])}}, memory
    if match := re.fullmatch(r"spec\.model\.quantization (\w+)", way):
        return {**service, "model": {**model, "quantization": match[1]}}, memory
    if way == "spec.engine.kvCacheMemory unset":
        return {**service, "engine": {key: value for key, value in engine.items() if key != "kvCacheMemory"}}, memory
    match = re.search(r"at least (\d+Mi) ", way)
    assert match, way
    return service, parse_bytes(match[1])


MISFITS = [
    ("Llama-3.1-8B", {"model": {}, "engine": {}}, 24 * GIB),
    ("Llama-3.1-8B", {"model": {"maxModelLen": 8192}, "engine": {"maxNumBatchedTokens": 131072}}, 24 * GIB),
    ("Llama-3.1-8B", {"model": {"maxModelLen": 8192}, "engine": {"kvCacheMemory": "64Mi"}}, 24 * GIB),
    ("Llama-3.1-8B", {"model": {"maxModelLen": 8192}, "engine": {"kvCacheMemory": "40Gi"}}, 24 * GIB),
    ("Llama-3.2-1B", {"model": {"maxModelLen": 4096}, "engine": {"maxNumSeqs": 4096}}, 9 * GIB),
    ("Llama-3.1-70B", {"model": {"maxModelLen": 8192}, "engine": {}}, A100_80),
    ("Gemma-2-27B", {"model": {}, "engine": {}}, A100_40),
]


@pytest.mark.parametrize(("name", "service", "memory"), MISFITS)
@pytest.mark.parametrize("on_cpu", [False, True], ids=["gpu", "cpu"])
def test_each_proposal_by_itself_makes_it_fit(name: str, service: dict[str, Any], memory: int, on_cpu: bool) -> None:
    """Nothing is proposed that was not asked; lengths are the largest that fit."""
    more = {"accelerator": {"vendor": "cpu"}} if on_cpu else {}
    told = misfit(plan_capacity(spec(**service, **more), shape(name), memory))
    assert told.ways
    for way in told.ways:
        changed, limit = applied(way, service, memory)
        assert isinstance(plan_capacity(spec(**changed, **more), shape(name), limit), Fit), way
        if match := re.fullmatch(r"spec\.(model|engine)\.(\w+) at most (\d+)", way):
            beyond = {**changed, match[1]: {**changed[match[1]], match[2]: int(match[3]) + 1}}
            if match[2] != "maxModelLen":  # a length within the last block needs no further block
                assert isinstance(plan_capacity(spec(**beyond, **more), shape(name), limit), Misfit), way


def test_devices_that_share_a_layer_share_its_weights() -> None:
    one = memory_question(spec(), shape("Llama-3.1-70B"), A100_80)
    four = memory_question(spec(accelerator={"count": 4}), shape("Llama-3.1-70B"), A100_80)
    assert (one.tensor_parallel, four.tensor_parallel) == (1, 4)
    assert fits(replace(four, max_model_len=8192))
    piped = spec(accelerator={"count": 4}, parallelism={"pipeline": 2})
    assert memory_question(piped, shape("Llama-3.1-70B"), A100_80).tensor_parallel == 2


def test_what_the_spec_leaves_open_is_the_engines_default() -> None:
    """One place holds the defaults: the contract's."""
    planned, engine = engine_args(spec()), EngineArgs(model="planned")
    assert planned.model_dump(exclude={"quantization", "dtype"}) == engine.model_dump(exclude={"quantization", "dtype"})
    question = memory_question(spec(), shape("Gemma-2-2B"), A100_40)
    assert (question.max_model_len, question.block_size, question.utilization) == (8192, 16, 0.9)
    assert (question.dtype, question.kv_dtype, question.quantization) == ("bfloat16", "bfloat16", "none")


def test_settings_of_the_spec_reach_the_formula() -> None:
    asked = spec(
        {"maxModelLen": 4096, "dtype": "float32", "quantization": "int8"},
        {
            "maxNumSeqs": 7,
            "maxNumBatchedTokens": 512,
            "blockSize": 32,
            "kvCacheMemory": "1Gi",
            "kvCacheDtype": "bfloat16",
        },
        accelerator={"vendor": "cpu"},
    )
    question = memory_question(asked, shape("Llama-3.2-1B"), 64 * GIB)
    assert (question.max_model_len, question.dtype, question.quantization) == (4096, "float32", "int8")
    assert (question.max_num_seqs, question.max_num_batched_tokens, question.block_size) == (7, 512, 32)
    assert (question.kv_cache_memory, question.kv_dtype, question.device) == (GIB, "bfloat16", "cpu")


@pytest.mark.parametrize(
    ("stored", "asked", "vendor", "expected"),
    [
        ("bfloat16", "auto", "cpu", "bfloat16"),
        ("float16", "auto", "cpu", "bfloat16"),
        ("float16", "auto", "nvidia", "float16"),
        ("float16", "float16", "cpu", "float16"),
        ("float32", "bfloat16", "nvidia", "bfloat16"),
    ],
)
def test_the_type_is_the_one_that_the_engine_takes(stored: str, asked: str, vendor: str, expected: str) -> None:
    public = replace(shape("Llama-3.2-1B"), dtype=stored)
    assert memory_question(spec({"dtype": asked}, accelerator={"vendor": vendor}), public, GIB).dtype == expected


def test_an_unknown_type_is_named() -> None:
    with pytest.raises(ValueError, match="got 'float8_e5m2'"):
        plan_capacity(spec(), replace(shape("Llama-3.2-1B"), dtype="float8_e5m2"), GIB)


def test_on_cpus_the_limit_is_the_containers() -> None:
    settings = Settings()
    cpu = {"accelerator": {"vendor": "cpu"}}
    assert memory_limit(spec(**cpu), settings) == 4 * GIB
    assert memory_limit(spec(resources={"limits": {"memory": "1.5Gi"}}, **cpu), settings) == 3 * GIB // 2
    assert memory_limit(spec(resources={"requests": {"memory": "1Gi"}}, **cpu), settings) is None
    assert memory_limit(spec(accelerator={"count": 2}), settings) == parse_bytes(times("32Gi", 2))


@pytest.mark.parametrize(
    ("low", "high", "bound", "expected"), [(1, 10, 7, 7), (1, 10, 10, 10), (1, 10, 0, None), (5, 4, 9, None)]
)
def test_the_largest_number_is_found(low: int, high: int, bound: int, expected: int | None) -> None:
    assert largest(low, high, lambda number: number <= bound) == expected
