"""From `kubectl apply` to tokens."""

import openai
import pytest

from e2e.support import operator, services
from e2e.support.environment import Environment
from e2e.support.kubectl import Kubectl


@pytest.fixture
def tiny(shared: Kubectl, model_uri: str) -> Kubectl:
    """Where the service `tiny` is Ready, whichever test comes first."""
    shared.apply(services.inference_service("tiny", model_uri))
    services.wait_ready(shared, "tiny")
    return shared


def test_an_applied_service_serves_tokens_through_its_service(environment: Environment, tiny: Kubectl) -> None:
    """Apply, Ready, then the OpenAI client streams completions and chat through the Service."""
    service = services.wait_ready(tiny, "tiny")
    assert service["status"]["observedGeneration"] == service["metadata"]["generation"]

    with services.endpoint(environment, tiny, "tiny") as base:
        client = openai.OpenAI(base_url=f"{base}/v1", api_key="none")
        assert [model.id for model in client.models.list()] == ["tiny"]

        whole = client.completions.create(model="tiny", prompt="Return a", max_tokens=24, temperature=0)
        stream = client.completions.create(model="tiny", prompt="Return a", max_tokens=24, temperature=0, stream=True)
        pieces = [chunk.choices[0].text for chunk in stream if chunk.choices]
        assert len(pieces) > 4
        assert "".join(pieces) == whole.choices[0].text
        assert whole.usage is not None
        assert whole.usage.completion_tokens <= 24

        chat = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "What does str.join do?"}], max_tokens=40, temperature=0
        )
        assert chat.choices[0].message.content


def test_kubectl_shows_what_people_ask_for(tiny: Kubectl) -> None:
    """`kubectl get isvc` shows the model, ready and desired replicas, the use of the KV cache and the age."""
    header, row = tiny.run("get", "isvc", "tiny").splitlines()
    assert {"NAME", "MODEL", "READY", "AGE"} <= set(header.split())
    assert "KV" in header
    assert "tiny" in row
    assert "1/1" in row
    explained = tiny.run("explain", "isvc.spec.scaling")
    assert "minReplicas" in explained
    assert "DESCRIPTION" in explained


def test_deleting_a_service_leaves_nothing(tiny: Kubectl) -> None:
    """Everything that the operator made is owned by the service and goes with it."""
    tiny.run("delete", "isvc", "tiny", "--timeout=60s")
    services.wait_gone(tiny, "tiny")


def test_deletion_needs_no_operator(environment: Environment, tiny: Kubectl) -> None:
    """With the operator stopped, a service and all that belongs to it can still be deleted."""
    operator.scale(environment.kubectl, 0)
    try:
        tiny.run("delete", "isvc", "tiny", "--timeout=60s")
        services.wait_gone(tiny, "tiny")
    finally:
        operator.scale(environment.kubectl, 1)
