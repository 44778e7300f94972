"""Reading objects as `kubectl get` does, by whatever name of their kind."""

from typing import Any

import httpx
import pytest

from e2e.support.kubectl import KubectlError
from e2e.support.reading import Reader

CORE = [
    {"name": "pods", "singularName": "", "kind": "Pod", "shortNames": ["po"], "namespaced": True},
    {"name": "pods/log", "singularName": "", "kind": "Pod", "namespaced": True},
    {"name": "nodes", "singularName": "", "kind": "Node", "namespaced": False},
    {"name": "events", "singularName": "", "kind": "Event", "namespaced": True},
]
ANSWERS: dict[str, Any] = {
    "/apis": {
        "groups": [
            {"preferredVersion": {"groupVersion": "events.k8s.io/v1"}},
            {"preferredVersion": {"groupVersion": "kvasir.dev/v1alpha1"}},
        ]
    },
    "/api/v1": {"resources": CORE},
    "/apis/events.k8s.io/v1": {"resources": [CORE[-1]]},
    "/apis/kvasir.dev/v1alpha1": {
        "resources": [
            {
                "name": "inferenceservices",
                "singularName": "inferenceservice",
                "kind": "InferenceService",
                "shortNames": ["isvc"],
                "namespaced": True,
            }
        ]
    },
    "/apis/kvasir.dev/v1alpha1/namespaces/a/inferenceservices/tiny": {"kind": "InferenceService"},
    "/api/v1/nodes/n": {"kind": "Node"},
    "/api/v1/namespaces/a/pods?labelSelector=x%3Dy%2Cz": {
        "apiVersion": "v1",
        "kind": "PodList",
        "items": [{"metadata": {"name": "one"}}],
    },
    "/api/v1/namespaces/default/events": {"apiVersion": "v1", "kind": "EventList", "items": []},
}


def answer(request: httpx.Request) -> httpx.Response:
    found = ANSWERS.get(request.url.raw_path.decode())
    return httpx.Response(404, text="no such thing") if found is None else httpx.Response(200, json=found)


@pytest.fixture
def reader() -> Reader:
    return Reader(httpx.Client(base_url="http://cluster", transport=httpx.MockTransport(answer)))


@pytest.mark.parametrize("kind", ["isvc", "inferenceservice", "inferenceservices"])
def test_a_kind_has_several_names(reader: Reader, kind: str) -> None:
    assert reader.get(kind, "a", "tiny") == {"kind": "InferenceService"}


def test_what_is_not_there_is_none(reader: Reader) -> None:
    assert reader.get("pod", "a", "absent") is None


def test_nodes_are_in_no_namespace(reader: Reader) -> None:
    assert reader.get("node", "a", "n") == {"kind": "Node"}


def test_items_of_lists_say_what_they_are(reader: Reader) -> None:
    """As kubectl prints them; the API server leaves that out."""
    assert reader.list("pods", "a", "x=y,z") == [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}}]


def test_the_core_group_comes_first(reader: Reader) -> None:
    """And without a namespace `default` is meant, as by kubectl."""
    assert reader.list("events", None) == []


def test_what_cannot_be_read_is_an_error(reader: Reader) -> None:
    with pytest.raises(KubectlError, match="no kind 'gadget'"):
        reader.get("gadget", "a", "x")
    with pytest.raises(KubectlError, match="404: no such thing"):
        reader.list("pods", "b")
