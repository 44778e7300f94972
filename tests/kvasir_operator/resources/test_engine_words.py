"""Messages of the engine, read by people who wrote a spec."""

import pytest

from kvasir_operator.api.v1alpha1 import InferenceServiceSpec
from kvasir_operator.resources.engine import SPEC_FIELDS, in_words_of_the_spec
from kvasir_runtime.contract.engine_args import EngineArgs


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("raise kv_cache_memory to 2Mi", "raise spec.engine.kvCacheMemory to 2Mi"),
        ("lower --max-model-len or --max-num-seqs.", "lower spec.model.maxModelLen or spec.engine.maxNumSeqs."),
        ("the dtype of this checkpoint", "the dtype of this checkpoint"),
        ("spec.engine.kvCacheMemory stays", "spec.engine.kvCacheMemory stays"),
        ("/models/max-model-len-8192/config.json", "/models/max-model-len-8192/config.json"),
    ],
)
def test_fields_are_named_as_in_the_spec(said: str, shown: str) -> None:
    assert in_words_of_the_spec(said) == shown


def test_every_name_is_a_setting_of_the_engine_and_every_path_a_field_of_the_spec() -> None:
    schema = InferenceServiceSpec.model_json_schema(by_alias=True)
    assert set(SPEC_FIELDS) <= set(EngineArgs.model_fields)
    for path in SPEC_FIELDS.values():
        _, part, field = path.split(".")
        definition = schema["properties"][part]
        text = str(definition.get("$ref") or definition.get("allOf") or definition.get("anyOf"))
        name = text[text.index("#/$defs/") + 8 :].split("'", maxsplit=1)[0]
        assert field in schema["$defs"][name]["properties"], path
