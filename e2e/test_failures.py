"""What cannot work says so: where, why, and what would."""

from typing import Any

import pytest

from e2e.support import services
from e2e.support.kubectl import Kubectl, KubectlError, Object
from e2e.support.waiting import wait_for

SAYS_WHY_WITHIN = 15.0
"""Seconds from the moment Kubernetes itself knows that a pod cannot start."""


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (("replicas",), -1, ("spec.replicas", "0")),
        (("engine", "maxNumSeqs"), 0, ("spec.engine.maxNumSeqs", "1")),
        (("engine", "blockSize"), "big", ("spec.engine.blockSize",)),
        (("accelerator", "vendor"), "abacus", ("spec.accelerator.vendor", "cpu", "abacus")),
        (("model", "source", "uri"), "ftp://x/y", ("spec.model.source.uri", "ftp://x/y")),
        (("drain", "timeout"), "soon", ("spec.drain.timeout", "soon")),
    ],
)
def test_a_bad_field_is_refused_by_the_api_server(
    kubectl: Kubectl, path: tuple[str, ...], value: Any, complaint: tuple[str, ...]
) -> None:
    """The schema alone refuses it, naming the field and what is allowed or what was given."""
    service = services.inference_service("bad", "file:///var/lib/kvasir/models/tiny-llama")
    put(service["spec"], path, value)
    with pytest.raises(KubectlError) as refusal:
        kubectl.apply(service)
    assert all(part in str(refusal.value) for part in complaint), str(refusal.value)


def test_fields_that_contradict_each_other_are_reported_and_nothing_is_made(kubectl: Kubectl) -> None:
    """What a schema cannot say is said by the operator: field, bound and value in the condition."""
    service = services.inference_service("bad", "file:///var/lib/kvasir/models/tiny-llama")
    service["spec"]["scaling"] = {"minReplicas": 4, "maxReplicas": 2}
    kubectl.apply(service)
    told = wait_for("a verdict", lambda: services.condition(kubectl.get("isvc", "bad"), "Ready"), timeout=15)
    assert told["status"] == "False"
    assert "spec.scaling.maxReplicas" in told["message"]
    assert "4" in told["message"]
    assert "2" in told["message"]
    assert kubectl.list("pods") == []


def broken(kind: str, model_uri: str) -> Object:
    """A service that cannot start, each in its own way."""
    service = services.inference_service("broken", model_uri)
    spec = service["spec"]
    match kind:
        case "image":
            spec["engine"]["image"] = "docker.io/kvasir/absent:dev"
        case "scheduling":
            spec["nodeSelector"] = {"kvasir.dev/no-such-node": "true"}
        case "model":
            spec["model"]["source"]["uri"] = "file:///var/lib/kvasir/models/absent"
        case "memory":
            spec["resources"] = {"requests": {"cpu": "100m", "memory": "96Mi"}, "limits": {"memory": "96Mi"}}
        case "kv":
            spec["engine"]["kvCacheMemory"] = "64Ki"
        case "claim":
            spec["model"]["source"]["uri"] = "pvc://absent/model"
        case "outside":
            spec["model"]["source"]["uri"] = "file:///etc"
    return service


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("image", ("docker.io/kvasir/absent:dev",)),
        ("scheduling", ("node",)),
        ("model", ("/var/lib/kvasir/models/absent",)),
        ("memory", ("memory", "96Mi")),
        ("kv", ("kvCacheMemory",)),
        ("claim", ("absent",)),
        ("outside", ("file:///etc",)),
    ],
)
def test_a_service_that_cannot_start_says_why(
    kubectl: Kubectl, model_uri: str, kind: str, words: tuple[str, ...]
) -> None:
    """Ready is False with a message that names what is wrong; lastFailure holds cause and remedy."""
    kubectl.apply(broken(kind, model_uri))

    within = SAYS_WHY_WITHIN + STARTS_WITHIN.get(kind, 0.0)
    ready = services.wait_condition(kubectl, "broken", "Ready", "False", *words, timeout=within)
    assert ready["reason"]
    failure = services.status(kubectl, "broken").get("lastFailure") or {}
    if kind != "outside":
        assert failure.get("cause")
        assert failure.get("remedy")


STARTS_WITHIN = {"memory": 15.0, "kv": 15.0, "model": 15.0}
"""Seconds that a container needs, on a busy machine of two cores, until it has failed."""


def test_a_mended_service_recovers(kubectl: Kubectl, model_uri: str) -> None:
    """Correcting the spec is enough: the failed pod gives way to one that starts."""
    kubectl.apply(broken("image", model_uri))
    wait_for("a complaint", lambda: services.status(kubectl, "broken").get("lastFailure"), timeout=40)
    kubectl.apply(services.inference_service("broken", model_uri))
    services.wait_ready(kubectl, "broken")


def put(tree: Object, path: tuple[str, ...], value: Any) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = value
