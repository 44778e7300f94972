"""Random schemas, the committed model: every output that ended by itself is valid."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from kvasir_runtime.config import CacheConfig, EngineConfig, SchedulerConfig
from kvasir_runtime.engine.llm_engine import LLMEngine
from kvasir_runtime.engine.messages import FinishReason
from kvasir_runtime.sampling_params import SamplingParams
from kvasir_runtime.structured.constraint import Constraint
from kvasir_runtime.tokenizer import Tokenizer

TINY_LLAMA = Path(__file__).parents[2] / "models" / "tiny-llama"
Schema = dict[str, Any]

NAMES = st.sampled_from(["a", "b", "name", "ü", 'q"uote', "a b", "x1", ""])
VALUES = st.none() | st.booleans() | st.integers(-1000, 1000) | st.text('abü"\\\n {', max_size=5)


def bounds(low: str, high: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Schema]:
    """None, one or both of two bounds, in order."""

    def make(pair: tuple[Any, Any], keep: tuple[bool, bool]) -> Schema:
        ordered = sorted(pair)
        return {key: value for key, value, kept in zip((low, high), ordered, keep, strict=True) if kept}

    return st.builds(make, st.tuples(values, values), st.tuples(st.booleans(), st.booleans()))


def kind(name: str, *parts: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    return st.tuples(*parts).map(lambda made: {"type": name} | {k: v for part in made for k, v in part.items()})


def maybe(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[Schema]:
    return st.fixed_dictionaries({}, optional=keys)


LEAVES: st.SearchStrategy[Schema] = st.one_of(
    kind("null"),
    kind("boolean"),
    kind("integer", bounds("minimum", "maximum", st.integers(-(10**6), 10**6))),
    kind("number", bounds("minimum", "maximum", st.integers(-50, 50) | st.sampled_from([-0.5, 0.25, 12.75]))),
    kind("integer", maybe(multipleOf=st.integers(1, 12))),
    kind("string", st.just({"maxLength": 12}), maybe(minLength=st.integers(0, 12))),
    kind("string", maybe(pattern=st.sampled_from(["^[a-z]{2,5}$", "^\\d+-\\w{1,3}$", "^(ab|c\\.)*$", "^ü?[^x]$"]))),
    kind("string", maybe(format=st.sampled_from(["date", "date-time", "email", "uuid", "ipv4"]))),
    st.lists(VALUES, min_size=1, max_size=4, unique_by=repr).map(lambda values: {"enum": values}),
    VALUES.map(lambda value: {"const": value}),
    kind("string", st.just({"maxLength": 4})).map(lambda schema: {**schema, "type": ["string", "null"]}),
)


def objects(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    def make(properties: dict[str, Schema], needed: list[str], others: Any) -> Schema:
        return {
            "type": "object",
            "properties": properties,
            "required": sorted(set(needed) & set(properties)),
            **({} if others is None else {"additionalProperties": others}),
        }

    return st.builds(
        make, st.dictionaries(NAMES, inner, max_size=4), st.lists(NAMES), st.sampled_from([None, False]) | inner
    )


def arrays(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    return kind("array", st.fixed_dictionaries({"items": inner}), bounds("minItems", "maxItems", st.integers(0, 4)))


def tuples(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    pair = st.lists(inner, min_size=1, max_size=3)
    return pair.map(lambda made: {"type": "array", "prefixItems": made, "items": False, "minItems": len(made)})


def unions(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    return st.lists(inner, min_size=1, max_size=3).map(lambda made: {"anyOf": made})


TREE = st.recursive(LEAVES, lambda inner: objects(inner) | arrays(inner) | tuples(inner) | unions(inner), max_leaves=8)


def with_list(schema: Schema) -> Schema:
    """The schema's values as a linked list: a reference to a definition that refers to itself."""
    node = {"type": "object", "properties": {"value": schema, "next": {"$ref": "#/$defs/node"}}, "required": ["value"]}
    return {"$ref": "#/$defs/node", "$defs": {"node": {**node, "additionalProperties": False}}}


SCHEMAS = TREE | TREE.map(with_list)


@pytest.fixture(scope="module")
def engine() -> LLMEngine:
    cache, scheduler = CacheConfig(memory=16 << 20), SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=128)
    return LLMEngine(EngineConfig(TINY_LLAMA, dtype="float32", num_threads=1, cache=cache, scheduler=scheduler))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(TINY_LLAMA)


def check_all(engine: LLMEngine, tokenizer: Tokenizer, schemas: list[Schema], seed: int, temperature: float) -> None:
    sampling = [
        SamplingParams(
            max_tokens=120,
            seed=seed + number,
            temperature=temperature,
            constraint=Constraint("json_schema", json.dumps(schema)),
        )
        for number, schema in enumerate(schemas)
    ]
    prompts = [tokenizer.encode(f"An example of {json.dumps(schema)}: ")[:200] for schema in schemas]
    for schema, (done,) in zip(schemas, engine.generate(prompts, sampling), strict=True):
        event(str(done.finish_reason))
        if done.finish_reason is FinishReason.STOP:
            value = json.loads(tokenizer.decode(done.token_ids[:-1]))
            jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker()).validate(value)


GENERATION = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@settings(GENERATION, max_examples=25)
@given(st.lists(SCHEMAS, min_size=1, max_size=4), st.integers(0, 2**32), st.sampled_from([0.0, 0.8, 2.0]))
def test_what_ends_is_valid(
    engine: LLMEngine, tokenizer: Tokenizer, schemas: list[Schema], seed: int, temperature: float
) -> None:
    """Several schemas in one batch, greedy and at random."""
    check_all(engine, tokenizer, schemas, seed, temperature)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(GENERATION, max_examples=200)
@given(st.lists(SCHEMAS, min_size=1, max_size=6), st.integers(0, 2**32), st.sampled_from([0.0, 0.8, 2.0]))
def test_what_ends_is_valid_thoroughly(
    engine: LLMEngine, tokenizer: Tokenizer, schemas: list[Schema], seed: int, temperature: float
) -> None:
    """The same, many times."""
    check_all(engine, tokenizer, schemas, seed, temperature)
