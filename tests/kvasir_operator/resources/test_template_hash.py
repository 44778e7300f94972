"""What makes another revision, and what does not."""

from collections.abc import Callable
from typing import Any

import pytest

from kvasir_operator.api.v1alpha1 import InferenceService
from kvasir_operator.resources.template_hash import RevisionTemplate
from kvasir_operator.settings import Settings

MakeService = Callable[..., InferenceService]

SETTINGS = Settings(runtime_image="runtime:1")


def digest(make_service: MakeService, settings: Settings = SETTINGS, **spec: Any) -> str:
    return RevisionTemplate.of(make_service(**spec), settings).digest()


def test_the_digest_is_the_same_in_every_process(make_service: MakeService) -> None:
    """A change here rolls every service on upgrade of the operator: it must be meant."""
    assert digest(make_service) == "3882da3179"


@pytest.mark.parametrize(
    "spec",
    [
        {"model": {"source": {"uri": "pvc://models/other"}}},
        {"model": {"source": {"uri": "pvc://models/tiny"}, "servedName": "x"}},
        {"model": {"source": {"uri": "pvc://models/tiny"}, "maxModelLen": 128}},
        {"engine": {"maxNumSeqs": 7}},
        {"engine": {"image": "runtime:2"}},
        {"engine": {"env": [{"name": "A", "value": "1"}]}},
        {"engine": {"prefixCaching": {"enabled": False}}},
        {"accelerator": {"count": 1}},
        {"resources": {"limits": {"memory": "8Gi"}}},
        {"nodeSelector": {"a": "b"}},
        {"tolerations": [{"operator": "Exists"}]},
        {"affinity": {"podAntiAffinity": {}}},
        {"serviceAccountName": "x"},
        {"drain": {"timeout": "1m"}},
        {"router": {"apiKeysSecret": "x"}},
    ],
)
def test_what_a_running_pod_cannot_change_makes_a_revision(make_service: MakeService, spec: dict[str, Any]) -> None:
    assert digest(make_service, **spec) != digest(make_service)


@pytest.mark.parametrize(
    "spec",
    [
        {"replicas": 5},
        {"scaling": {"maxReplicas": 5}},
        {"rollout": {"maxSurge": 3}},
        {"priority": 5},
        {"router": {"replicas": 2}},
        # What is said explicitly, but is the default anyway.
        {"model": {"source": {"uri": "pvc://models/tiny"}, "servedName": "tiny", "dtype": "auto"}},
        {"engine": {"image": "runtime:1"}},
        {"engine": {"prefixCaching": {"enabled": True, "evictionPolicy": "lru"}, "env": []}},
        {"drain": {"timeout": "5m"}},
        {"parallelism": {"pipeline": 1}},
        {"resources": {"requests": {"cpu": "2", "memory": "4Gi"}, "limits": {"cpu": "2", "memory": "4Gi"}}},
    ],
)
def test_what_it_can_change_or_has_already_makes_none(make_service: MakeService, spec: dict[str, Any]) -> None:
    assert digest(make_service, **spec) == digest(make_service)


def test_adapters_make_one_for_where_they_come_from_alone(make_service: MakeService) -> None:
    """The first one of a kind of source changes what a pod must have; the next ones do not."""

    def of(*uris: str) -> str:
        found = [{"name": f"a{index}", "source": {"uri": uri}} for index, uri in enumerate(uris)]
        return digest(make_service, adapters=found)

    assert of("s3://b/a") == of("s3://b/x", "s3://c/y") != digest(make_service)
    assert of("pvc://c/a") == of("pvc://c/b")
    assert len({of("s3://b/a"), of("hf://o/a"), of("pvc://c/a"), of("pvc://d/a"), of("pvc://c/a", "s3://b/a")}) == 5


def test_the_operators_defaults_count_where_the_spec_is_silent(make_service: MakeService) -> None:
    """Another default image is an upgrade of the services that follow it, and of no other."""
    other = Settings(runtime_image="runtime:2")
    assert digest(make_service, other) != digest(make_service)
    pinned = {"engine": {"image": "runtime:7"}}
    assert digest(make_service, other, **pinned) == digest(make_service, SETTINGS, **pinned)


def test_settings_that_shape_no_engine_roll_nothing(make_service: MakeService) -> None:
    other = Settings(runtime_image="runtime:1", drain_margin_seconds=60, startup_timeout_seconds=60)
    assert digest(make_service, other) == digest(make_service)


def test_a_template_can_be_stored_and_read_back(make_service: MakeService) -> None:
    service = make_service(
        accelerator={"count": 2}, engine={"kvCacheMemory": "1Gi"}, affinity={"podAffinity": {"x": [1]}}
    )
    template = RevisionTemplate.of(service, SETTINGS)
    data = template.to_data()
    assert data == {
        "servedName": "tiny",
        "image": "runtime:1",
        "model": {"source": {"uri": "pvc://models/tiny"}},
        "engine": {"kvCacheMemory": "1Gi"},
        "accelerator": {"count": 2},
        "resources": {
            "requests": {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": 2},
            "limits": {"memory": "64Gi", "nvidia.com/gpu": 2},
        },
        "affinity": {"podAffinity": {"x": [1]}},
    }
    assert RevisionTemplate.model_validate(data) == template
    assert RevisionTemplate.model_validate(data).digest() == template.digest()
