"""What a service takes is known before its replicas are made, and refused where it cannot fit."""

from pathlib import Path

import pytest

from e2e.support import files, model_servers, services
from e2e.support.environment import Environment
from e2e.support.kubectl import Kubectl, Object
from e2e.support.waiting import wait_for

INSPECTION = "app.kubernetes.io/component=inspection"


@pytest.fixture(autouse=True)
def own_cluster(environment: Environment) -> None:
    if not environment.own:
        pytest.skip("the models are on this machine, which a given cluster does not reach")


def inspection(kubectl: Kubectl, name: str) -> Object:
    """`status.inspection`, once there is one."""
    found: Object = wait_for(
        f"an inspection of {name}", lambda: services.status(kubectl, name).get("inspection"), timeout=60
    )
    return found


def test_a_model_is_looked_at_once_and_its_plan_is_what_is_measured(kubectl: Kubectl, model_uri: str) -> None:
    """The formula is the engine's own: weights and KV bytes are the same before and after."""
    kubectl.apply(services.inference_service("tiny", model_uri))
    planned = wait_for("a plan", lambda: services.status(kubectl, "tiny").get("capacity"), timeout=60)
    looked = inspection(kubectl, "tiny")
    assert looked["model"]["shape"]["num_layers"] == 4
    services.wait_ready(kubectl, "tiny")
    measured = services.status(kubectl, "tiny")["capacity"]
    assert (planned["source"], measured["source"]) == ("planned", "measured")
    assert {**planned, "source": ""} == {**measured, "source": ""}
    wait_for("the inspection to go", lambda: not kubectl.list("pods", INSPECTION), timeout=30)
    kubectl.apply(services.inference_service("twin", model_uri))
    assert inspection(kubectl, "twin") == looked
    services.wait_ready(kubectl, "twin")


def test_a_model_behind_credentials_is_looked_at_with_them(kubectl: Kubectl) -> None:
    """By a pod that mounts the source's own Secret; the operator reads none of them."""
    address = model_servers.address_for_pods(kubectl)
    with model_servers.s3(services.TINY_LLAMA, address, "models") as endpoint:
        keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_ENDPOINT_URL": endpoint}
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bucket"}, "stringData": keys}
        service = services.inference_service("tiny", f"s3://models/{services.TINY_LLAMA.name}")
        service["spec"]["model"]["source"]["secretName"] = "bucket"
        kubectl.apply(secret, service)
        assert inspection(kubectl, "tiny")["model"]["stored_bytes"] > 1_000_000
        services.wait_ready(kubectl, "tiny")


def test_what_cannot_fit_is_refused_before_a_replica_is_made(kubectl: Kubectl, tmp_path: Path) -> None:
    """With the numbers and what would fit; raising the limit is enough to have it tried."""
    files.write_model(tmp_path / "models", "gemma-2-27b")
    address = model_servers.address_for_pods(kubectl)
    with model_servers.https(tmp_path / "models", address, tmp_path) as (base, certificate):
        service = services.inference_service("large", f"{base}/gemma-2-27b")
        service["spec"]["model"]["source"]["secretName"] = "models"
        del service["spec"]["engine"]["kvCacheMemory"]  # too little for this model, whatever the limit
        kubectl.apply(model_servers.secret_of(certificate), service)
        told = services.wait_condition(kubectl, "large", "CapacityFits", "False", timeout=60)
        assert told["reason"] == "OutOfMemoryWeights"
        assert "the memory limit is 1.5Gi x 0.9" in told["message"]
        assert "What would fit: spec.resources.limits.memory at least" in told["message"]
        failure = services.status(kubectl, "large")["lastFailure"]
        assert (failure["cause"], failure["remedy"][:14]) == ("OutOfMemoryWeights", "What would fit")
        assert services.condition(kubectl.get("isvc", "large"), "Ready")["reason"] == "OutOfMemoryWeights"
        assert services.pods(kubectl, "large") == []
        service["spec"]["resources"] = {"requests": {"cpu": "1", "memory": "900Gi"}, "limits": {"memory": "900Gi"}}
        kubectl.apply(service)
        services.wait_condition(kubectl, "large", "CapacityFits", "True", "planned: weights", timeout=30)
        wait_for("a replica", lambda: services.pods(kubectl, "large"), timeout=30)
        assert services.status(kubectl, "large")["capacity"]["source"] == "planned"
