"""What a real Prometheus makes of a service's metrics."""

from pathlib import Path

import openai
import pytest

from e2e.support import services
from e2e.support.environment import Environment
from e2e.support.kubectl import Kubectl
from e2e.support.prometheus import Prometheus, prometheus
from e2e.support.waiting import wait_for
from kvasir_runtime.contract import metric_names

REQUESTS = 6
TOKENS = 10
SERIES = {value for name, value in vars(metric_names).items() if name.isupper() and ":" in str(value)}
UNTIL_USED = {metric_names.LORA_REQUESTS_INFO}
"""Exported only where there are adapters."""


def test_prometheus_scrapes_every_series_with_its_type(
    environment: Environment, kubectl: Kubectl, model_uri: str, tmp_path: Path
) -> None:
    """Selected as the PodMonitor says, scraped without an error, and the numbers are those of the traffic."""
    if not environment.own:
        pytest.skip("Prometheus needs this machine's way to the pods")
    kubectl.apply(services.inference_service("tiny", model_uri))
    services.wait_ready(kubectl, "tiny")
    [pod] = services.pods(kubectl, "tiny")
    with prometheus(kubectl, tmp_path) as server:
        wait_for("a scrape", lambda: server.value('up{job="kvasir-runtime"}') == 1, timeout=60)
        [target] = server.targets()
        assert (target["health"], target["lastError"], target["labels"]["pod"]) == ("up", "", pod["metadata"]["name"])
        send_traffic(environment, kubectl)
        total = f'{metric_names.GENERATION_TOKENS}_total{{model_name="tiny"}}'
        wait_for("the traffic to be scraped", lambda: server.value(total) == REQUESTS * TOKENS, timeout=30)
        check_types(server)
        check_numbers(server)


def send_traffic(environment: Environment, kubectl: Kubectl) -> None:
    with services.endpoint(environment, kubectl, "tiny") as base:
        client = openai.OpenAI(base_url=f"{base}/v1", api_key="none")
        for _ in range(REQUESTS):
            client.completions.create(
                model="tiny", prompt="def add(a, b):", max_tokens=TOKENS, extra_body={"ignore_eos": True}
            )


def check_types(server: Prometheus) -> None:
    """Every series of the contract is there, and Prometheus read the type that dashboards expect."""
    found = {name.removesuffix("_total"): entries[0]["type"] for name, entries in server.metadata().items()}
    assert SERIES - UNTIL_USED - found.keys() == set()
    assert found[metric_names.NUM_REQUESTS_RUNNING] == "gauge"
    assert found[metric_names.GENERATION_TOKENS] == "counter"
    assert found[metric_names.TIME_TO_FIRST_TOKEN] == "histogram"


def check_numbers(server: Prometheus) -> None:
    """The expressions of usual dashboards and KEDA triggers give numbers."""
    names = metric_names
    assert server.value(f"sum({names.REQUEST_SUCCESS}_total)") == REQUESTS
    assert server.value(f"{names.TIME_TO_FIRST_TOKEN}_count") == REQUESTS
    assert server.value(f"{names.INTER_TOKEN_LATENCY}_count") == REQUESTS * (TOKENS - 1)
    quantile = server.value(f"histogram_quantile(0.95, sum by (le) ({names.TIME_TO_FIRST_TOKEN}_bucket))")
    assert quantile is not None
    assert 0 < quantile < 60
    assert server.value(f"sum({names.NUM_REQUESTS_WAITING})") == 0
    usage = server.value(f"max({names.KV_CACHE_USAGE})")
    assert usage is not None
    assert 0 <= usage <= 1
    [info] = server.query(names.CACHE_CONFIG_INFO)
    assert info["metric"]["block_size"] == "16"
