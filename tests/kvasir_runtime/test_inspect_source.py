"""A model looked at where it is stored: two small files are read, and nothing of the weights."""

import json
from dataclasses import replace

import pytest

from kvasir_runtime.__main__ import main
from kvasir_runtime.contract.failures import Cause, FailureReport, KvasirError
from kvasir_runtime.contract.memory import ModelShape
from kvasir_runtime.contract.model_report import ModelReport
from kvasir_runtime.fetch.retry import RetryPolicy
from kvasir_runtime.fetch.source import Access
from kvasir_runtime.inspect_source import inspect_source
from tests.kvasir_runtime.fetch.servers import Site, serving
from tests.kvasir_runtime.server.harness import MODEL

ONCE = RetryPolicy(attempts=1)
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
}
LLAMA_3_1_8B_BYTES = 16_060_522_496
"""metadata.total_size of the published index: two bytes for each of 8,030,261,248 parameters."""
INDEX = {"metadata": {"total_size": LLAMA_3_1_8B_BYTES}, "weight_map": {"a": "model-00001-of-00001.safetensors"}}


def look(uri, retry=ONCE):
    return inspect_source(uri, Access(), retry)


def folder(tmp_path, **files):
    for name, content in files.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (tmp_path / name.replace("__", ".")).write_bytes(data)
    return f"file://{tmp_path}"


def test_the_index_says_how_many_bytes_there_are(tmp_path):
    uri = folder(tmp_path, config__json=CONFIG, model__safetensors__index__json=INDEX)
    found = look(uri)
    assert found.stored_bytes == LLAMA_3_1_8B_BYTES
    assert found.architecture == "LlamaForCausalLM"
    assert (found.shape.num_layers, found.shape.num_kv_heads, found.shape.head_dim) == (32, 8, 128)
    assert found.doubt == ""


def test_without_an_index_the_files_sizes_do(tmp_path):
    uri = folder(tmp_path, config__json=CONFIG, model__safetensors=bytes(1000))
    assert look(uri).stored_bytes == 1000


def test_files_that_contradict_the_configuration_are_doubted(tmp_path):
    """A plan that the model's own files contradict is no plan: nothing may be refused by it."""
    uri = folder(tmp_path, config__json=CONFIG, model__safetensors=bytes(1000))
    assert look(uri).doubt == "its files hold 1000 bytes of weights, config.json describes 16061054976"


def test_only_the_configuration_and_the_index_are_read_over_http():
    weights = bytes(500_000)
    files = {"/m/config.json": json.dumps(CONFIG).encode(), "/m/model.safetensors": weights}
    with serving(Site(files)) as site:
        assert look(f"{site.url}/m").stored_bytes == len(weights)
    read = [path for method, path, _ in site.requests if method == "GET"]
    assert "/m/config.json" in read
    assert "/m/model.safetensors" not in read


@pytest.mark.parametrize(
    ("files", "cause", "words"),
    [
        ({"tokenizer__json": b"{}"}, Cause.MODEL_NOT_FOUND, "holds no config.json"),
        ({"config__json": b"{"}, Cause.MODEL_INVALID, "config.json is not valid JSON"),
        ({"config__json": b"[]"}, Cause.MODEL_INVALID, "config.json must hold a JSON object, holds list"),
        ({"config__json": b" " * (1 << 21)}, Cause.MODEL_INVALID, "config.json has more than 1048576 bytes"),
        ({"config__json": {"hidden_size": 8}}, Cause.MODEL_INVALID, "num_attention_heads must be an integer"),
    ],
)
def test_what_is_no_model_says_so(tmp_path, files, cause, words):
    with pytest.raises(KvasirError, match=words) as refused:
        look(folder(tmp_path, **files))
    assert refused.value.report.cause is cause


def test_an_archive_is_refused():
    with pytest.raises(KvasirError, match="is an archive"):
        look("https://host/model.tar.gz")


def test_a_source_that_is_away_is_told_after_a_few_attempts():
    with pytest.raises(KvasirError, match="gave up") as refused:
        look("https://127.0.0.1:1/m")
    assert refused.value.report.cause is Cause.SOURCE_UNREACHABLE


def test_a_report_is_left_for_the_kubelet(tmp_path, monkeypatch, capsys):
    """What the operator reads back is what was found; a failure leaves its cause there."""
    log = tmp_path / "termination"
    monkeypatch.setenv("KVASIR_TERMINATION_LOG", str(log))
    assert main(["inspect", f"file://{MODEL}", "--report"]) == 0
    found = ModelReport.from_json(log.read_text())
    assert found == look(f"file://{MODEL}")
    assert found is not None
    assert found.doubt == ""
    assert len(log.read_bytes()) < 1000
    assert main(["inspect", "file:///none", "--report"]) == 1
    failure = FailureReport.from_json(log.read_text())
    assert failure is not None
    assert failure.cause is Cause.MODEL_NOT_FOUND
    capsys.readouterr()


def test_a_source_is_planned_like_a_folder(capsys):
    assert main(["inspect", f"file://{MODEL}", "--memory-limit", "4Gi", "--json"]) == 0
    by_uri = json.loads(capsys.readouterr().out)
    assert main(["inspect", "--model", str(MODEL), "--memory-limit", "4Gi", "--json"]) == 0
    by_folder = json.loads(capsys.readouterr().out)
    known_by_folder_alone = {"path", "parameters"}
    assert {key for key in by_uri if by_uri[key] != by_folder[key]} == known_by_folder_alone
    assert by_uri["parameters"] is None


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"shape": {"num_layers": 1}}', '{"shape": 3}'])
def test_other_words_are_no_report(text):
    assert ModelReport.from_json(text) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_layers": "many"},
        {"num_layers": 0},
        {"head_dim": -1},
        {"num_layers": True},
        {"dtype": 7},
        {"vocab_size": 1 << 60},
    ],
)
def test_numbers_that_are_none_make_no_report(wrong):
    """Whoever chooses the image chooses the words; they must not end the operator's turn."""
    data = ModelReport(ModelShape.from_hf_config(CONFIG)).to_data()
    assert ModelReport.from_data(data) is not None
    assert ModelReport.from_data({**data, "shape": {**data["shape"], **wrong}}) is None
    assert ModelReport.from_data({**data, "stored_bytes": "much"}) is None


def test_what_a_newer_runtime_adds_is_left_out():
    report = ModelReport(ModelShape.from_hf_config(CONFIG), "x", 5)
    data = report.to_data()
    data["shape"]["novelty"] = 7
    assert ModelReport.from_data(data | {"more": 1}) == report


def test_a_shape_of_unknown_type_is_not_doubted():
    """The formula has no bytes for it; planning says so itself."""
    shape = replace(ModelShape.from_hf_config(CONFIG), dtype="float8_e5m2")
    assert ModelReport(shape, stored_bytes=5).doubt == ""
