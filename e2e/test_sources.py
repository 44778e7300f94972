"""Where models come from: a volume claim, HTTPS, S3."""

from pathlib import Path

import pytest

from e2e.support import model_servers, services
from e2e.support.environment import Environment, program
from e2e.support.kubectl import Kubectl, Object

SECRETS = "/var/run/secrets/kvasir/source"


@pytest.fixture(autouse=True)
def own_cluster(environment: Environment) -> None:
    if not environment.own:
        pytest.skip("the models are on this machine, which a given cluster does not reach")


def secret(name: str, **data: str) -> Object:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}


def service(uri: str, **source: str) -> Object:
    made = services.inference_service("tiny", uri)
    made["spec"]["model"]["source"] |= source
    return made


def test_a_model_in_a_volume_claim(kubectl: Kubectl) -> None:
    """`pvc://claim/path` mounts the claim and reads the folder in it."""
    program(
        "e2e.cluster", "volume", "--claim", f"{kubectl.namespace}/models", f"{kubectl.namespace}-models",
        str(services.TINY_LLAMA.parent),
    )  # fmt: skip
    kubectl.apply(service(f"pvc://models/{services.TINY_LLAMA.name}"))
    services.wait_ready(kubectl, "tiny")
    kubectl.run("delete", "isvc", "tiny")
    services.wait_gone(kubectl, "tiny")
    kubectl.run("delete", "pvc", "models", "--timeout=60s")
    kubectl.run("delete", "pv", f"{kubectl.namespace}-models", "--timeout=60s")


def test_a_model_behind_https(kubectl: Kubectl, tmp_path: Path) -> None:
    """A folder is fetched by an init container that shows its progress and trusts the given authority."""
    address = model_servers.address_for_pods(kubectl)
    with model_servers.https(services.TINY_LLAMA.parent, address, tmp_path) as (base, certificate):
        kubectl.apply(
            secret("models", **{"ca.crt": certificate, "SSL_CERT_FILE": f"{SECRETS}/ca.crt"}),
            service(f"{base}/{services.TINY_LLAMA.name}", secretName="models"),
        )
        services.wait_ready(kubectl, "tiny")
        [pod] = services.pods(kubectl, "tiny")
        log = kubectl.run("logs", pod["metadata"]["name"], "-c", "fetch")
    assert "fetching 6 files" in log
    assert "100.0 %" in log


def test_a_wrong_checksum_keeps_a_model_out(kubectl: Kubectl, tmp_path: Path) -> None:
    """What was fetched is not what was meant: the service says so and does not serve it."""
    address = model_servers.address_for_pods(kubectl)
    with model_servers.https(services.TINY_LLAMA.parent, address, tmp_path) as (base, certificate):
        kubectl.apply(
            secret("models", **{"ca.crt": certificate, "SSL_CERT_FILE": f"{SECRETS}/ca.crt"}),
            service(f"{base}/{services.TINY_LLAMA.name}", secretName="models", sha256="0" * 64),
        )
        told = services.wait_condition(kubectl, "tiny", "Ready", "False", "SHA-256", timeout=60)
    assert told["reason"] == "WeightsCorrupt"
    assert services.status(kubectl, "tiny")["lastFailure"]["cause"] == "WeightsCorrupt"


def test_a_model_in_a_bucket(kubectl: Kubectl) -> None:
    """`s3://bucket/prefix` with credentials and endpoint from a Secret."""
    address = model_servers.address_for_pods(kubectl)
    with model_servers.s3(services.TINY_LLAMA, address, "models") as endpoint:
        kubectl.apply(
            secret(
                "bucket", AWS_ACCESS_KEY_ID="k", AWS_SECRET_ACCESS_KEY="s", AWS_REGION="us-east-1",
                AWS_ENDPOINT_URL=endpoint,
            ),
            service(f"s3://models/{services.TINY_LLAMA.name}", secretName="bucket"),
        )  # fmt: skip
        services.wait_ready(kubectl, "tiny")
