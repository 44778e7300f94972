"""Messages of the engine, read by people who wrote a spec."""

import pytest

from kvasir_operator.resources.engine import in_words_of_the_spec


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
