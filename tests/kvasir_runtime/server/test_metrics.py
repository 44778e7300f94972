"""The exposition against a table of what vLLM exports: names, types, labels and buckets."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kvasir_runtime.contract import metric_names
from kvasir_runtime.server.metrics import one_two_five
from tests.kvasir_runtime.server.harness import call

MODEL = {"model_name", "engine"}
REQUEST_SECONDS = (
    "0.3 0.5 0.8 1.0 1.5 2.0 2.5 5.0 10.0 15.0 20.0 30.0 40.0 50.0 60.0 120.0 240.0 480.0 960.0 1920.0 7680.0 +Inf"
)
TOKENS = "1.0 2.0 5.0 10.0 20.0 50.0 100.0 200.0 500.0 1000.0 2000.0 +Inf"
FIRST_TOKEN = (
    "0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1.0 2.5 5.0 7.5 10.0 20.0 40.0 80.0 160.0 640.0 2560.0 +Inf"
)
NEXT_TOKEN = "0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1.0 2.5 5.0 7.5 10.0 20.0 40.0 80.0 +Inf"

TABLE = [
    ("vllm:num_requests_running", "gauge", MODEL, None),
    ("vllm:num_requests_waiting", "gauge", MODEL, None),
    ("vllm:kv_cache_usage_perc", "gauge", MODEL, None),
    ("vllm:gpu_cache_usage_perc", "gauge", MODEL, None),
    ("vllm:engine_sleep_state", "gauge", {*MODEL, "sleep_state"}, None),
    ("vllm:prefix_cache_queries", "counter", MODEL, None),
    ("vllm:prefix_cache_hits", "counter", MODEL, None),
    ("vllm:num_preemptions", "counter", MODEL, None),
    ("vllm:prompt_tokens", "counter", MODEL, None),
    ("vllm:generation_tokens", "counter", MODEL, None),
    ("vllm:request_success", "counter", {*MODEL, "finished_reason"}, None),
    ("vllm:time_to_first_token_seconds", "histogram", MODEL, FIRST_TOKEN),
    ("vllm:inter_token_latency_seconds", "histogram", MODEL, NEXT_TOKEN),
    ("vllm:e2e_request_latency_seconds", "histogram", MODEL, REQUEST_SECONDS),
    ("vllm:request_queue_time_seconds", "histogram", MODEL, REQUEST_SECONDS),
    ("vllm:request_prefill_time_seconds", "histogram", MODEL, REQUEST_SECONDS),
    ("vllm:request_decode_time_seconds", "histogram", MODEL, REQUEST_SECONDS),
    ("vllm:request_inference_time_seconds", "histogram", MODEL, REQUEST_SECONDS),
    ("vllm:request_prompt_tokens", "histogram", MODEL, TOKENS),
    ("vllm:request_generation_tokens", "histogram", MODEL, TOKENS),
]


@pytest.fixture(scope="module")
def families(server):
    """The scraped families by name, after one completion of three tokens."""
    assert server.complete(prompt=[40, 41], max_tokens=3).status_code == 200
    text = call("GET", f"{server.url}/metrics").text
    return {family.name: family for family in text_string_to_metric_families(text)}


@pytest.mark.parametrize(("name", "kind", "labels", "buckets"), TABLE, ids=[row[0] for row in TABLE])
def test_series_are_vllms(families, name, kind, labels, buckets):
    """Every series has vLLM's type, labels and buckets."""
    family = families[name]
    assert family.type == kind
    samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
    assert set(samples[0].labels) - {"le"} == labels
    if buckets is not None:
        bounds = [sample.labels["le"] for sample in samples if sample.name.endswith("_bucket")]
        assert " ".join(bounds) == buckets


def test_every_contract_name_is_exported(families):
    """What the contract names is there, but for adapters' series, which appear with adapters."""
    promised = {value for name, value in vars(metric_names).items() if name.isupper() and ":" in str(value)}
    assert promised - families.keys() == {metric_names.LORA_REQUESTS_INFO}


def test_values(families):
    """The series count what was done."""
    values = {sample.name: sample.value for family in families.values() for sample in family.samples}
    assert values["vllm:prompt_tokens_total"] == 2
    assert values["vllm:generation_tokens_total"] == 3
    assert values["vllm:time_to_first_token_seconds_count"] == 1
    assert values["vllm:inter_token_latency_seconds_count"] == 2
    assert values["vllm:e2e_request_latency_seconds_count"] == 1
    assert values["vllm:request_generation_tokens_sum"] == 3
    states = {s.labels["sleep_state"]: s.value for s in families["vllm:engine_sleep_state"].samples}
    assert states == {"awake": 1, "weights_offloaded": 0, "discard_all": 0}
    reasons = {
        s.labels["finished_reason"]: s.value
        for s in families["vllm:request_success"].samples
        if s.name.endswith("_total")
    }
    assert reasons == {"length": 1, "stop": 0, "abort": 0, "error": 0}
    assert {sample.labels["phase"] for sample in families["kvasir:startup_seconds"].samples} >= {"weights", "total"}


@pytest.mark.parametrize(
    ("limit", "values"), [(1, [1]), (99, [1, 2, 5, 10, 20, 50]), (100, [1, 2, 5, 10, 20, 50, 100])]
)
def test_token_buckets(limit, values):
    """1, 2, 5 times powers of ten, up to the limit."""
    assert one_two_five(limit) == values
