"""The pod that looks at a model before replicas are made."""

from collections.abc import Callable
from typing import Any

import pytest

from kvasir_operator.api.v1alpha1 import InferenceService
from kvasir_operator.resources import names
from kvasir_operator.resources.inspection import build_inspection_pod
from kvasir_operator.resources.pod import build_pod
from kvasir_operator.resources.template_hash import RevisionTemplate
from kvasir_operator.settings import Settings

MakeService = Callable[..., InferenceService]
SETTINGS = Settings(allow_file_sources=True, file_source_roots=["/srv/models"])
KEY = "0123456789abcdef"


def built(service: InferenceService) -> dict[str, Any]:
    return build_inspection_pod(service.metadata, RevisionTemplate.of(service, SETTINGS), KEY, SETTINGS)


def test_it_reads_two_files_and_leaves_the_result_as_its_last_words(make_service: MakeService) -> None:
    """No volume for weights, no device, no other Secret than the source's."""
    service = make_service(
        model={"source": {"uri": "s3://models/big", "secretName": "key"}}, accelerator={"count": 1}, replicas=3
    )
    spec = built(service)["spec"]
    [container] = spec["containers"]
    assert container["args"] == ["inspect", "s3://models/big", "--report", "--secret-dir", names.SOURCE_SECRET_FOLDER]
    assert container["terminationMessagePath"] == "/dev/termination-log"
    assert {volume["name"] for volume in spec["volumes"]} == {"tmp", "source-secret"}
    assert {mount["name"] for mount in container["volumeMounts"]} == {"tmp", "source-secret"}
    assert container["resources"]["limits"] == {"memory": "512Mi"}
    assert (spec["restartPolicy"], spec["activeDeadlineSeconds"]) == ("Never", 120)
    assert "initContainers" not in spec


@pytest.mark.parametrize(
    ("uri", "address", "volume"),
    [
        ("pvc://claim/a/b", "file:///models/a/b", {"persistentVolumeClaim": {"claimName": "claim", "readOnly": True}}),
        (
            "file:///srv/models/m",
            "file:///srv/models/m",
            {"hostPath": {"path": "/srv/models", "type": "Directory"}},
        ),
    ],
)
def test_what_is_mounted_is_looked_at_in_its_folder(
    make_service: MakeService, uri: str, address: str, volume: dict[str, Any]
) -> None:
    spec = built(make_service(model={"source": {"uri": uri}}))["spec"]
    [container] = spec["containers"]
    assert container["args"] == ["inspect", address, "--report"]
    assert {"name": "model", **volume} in spec["volumes"]
    assert next(mount for mount in container["volumeMounts"] if mount["name"] == "model")["readOnly"]


def test_it_goes_where_a_folder_of_a_node_is_and_anywhere_else_otherwise(make_service: MakeService) -> None:
    chosen = {"nodeSelector": {"disk": "fast"}, "accelerator": {"count": 1}}
    on_node = built(make_service(model={"source": {"uri": "file:///srv/models/m"}}, **chosen))["spec"]
    assert on_node["nodeSelector"] == {"disk": "fast"}
    assert on_node["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    remote = built(make_service(model={"source": {"uri": "hf://org/m"}}, **chosen))["spec"]
    assert not remote.keys() & {"nodeSelector", "tolerations", "affinity"}


def test_it_is_nobody_and_no_replica(make_service: MakeService) -> None:
    """As restricted as a replica, with labels that no Service and no scale subresource selects."""
    service = make_service()
    pod = built(service)
    replica = build_pod(service.metadata, RevisionTemplate.of(service, SETTINGS), "p", SETTINGS)
    for field in ("securityContext", "automountServiceAccountToken", "enableServiceLinks"):
        assert pod["spec"][field] == replica["spec"][field]
    assert pod["spec"]["containers"][0]["securityContext"] == replica["spec"]["containers"][0]["securityContext"]
    labels = pod["metadata"]["labels"]
    assert labels[names.SERVICE_LABEL] == service.metadata.name
    assert not names.replica_selector(service.metadata.name).items() <= labels.items()
    assert pod["metadata"]["ownerReferences"] == replica["metadata"]["ownerReferences"]


def test_its_name_is_a_host_name() -> None:
    assert len(names.inspection_pod_name("s" * 45, KEY)) <= 63
