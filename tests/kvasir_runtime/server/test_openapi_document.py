"""Requests that schemathesis makes from the served OpenAPI document: no failure, and answers that fit the document."""

from collections.abc import Iterator

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode

from tests.kvasir_runtime.server.harness import Server, launch, wait_until

pytestmark = pytest.mark.slow

POSTED = ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = ("--served-model-name", "tiny", "--num-threads", "1", "--kv-cache-memory", "64Mi", "--max-model-len", "128")
    server = launch(tmp_path_factory.mktemp("real"), *flags, fake=False)
    wait_until(server._is_ready, timeout_s=90)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def document(real: Server) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{real.url}/openapi.json")


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("path", POSTED)
def test_whatever_the_document_allows_or_forbids(real, document, path, mode):
    """What fits the document and what does not is answered or refused in OpenAI's shape, as documented."""
    strategy = document[path]["POST"].as_strategy(generation_mode=mode)

    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=strategy, short=st.integers(1, 8))
    def send(case, short):
        if isinstance(case.body, dict) and case.body.get("max_tokens", None) is None:
            case.body.setdefault("max_tokens", short)
        reply = case.call(timeout=60)
        hasty = isinstance(case.body, dict) and isinstance(case.body.get("timeout_s"), int | float)
        assert reply.status_code in {200, 400, 404, 405, 415} | ({429, 503} if hasty else set()), reply.text
        if reply.status_code == 400:
            assert reply.json()["error"]["message"]

    send()
    assert real.probe("/livez").status_code == 200


def test_the_document_names_what_there_is(document, real):
    """The new fields are told with their types."""
    schemas = httpx.get(f"{real.url}/openapi.json").json()["components"]["schemas"]
    chat = schemas["ChatCompletionRequest"]["properties"]
    assert {"tools", "tool_choice", "parallel_tool_calls", "response_format", "structured_outputs"} <= set(chat)
