"""Resources of a replica: whose word counts."""

from collections.abc import Callable
from typing import Any

import pytest

from kvasir_operator.api.kubernetes import ResourceRequirements
from kvasir_operator.api.v1alpha1 import InferenceService
from kvasir_operator.resources.quantities import container_resources, times, without_devices
from kvasir_operator.settings import Settings

MakeService = Callable[..., InferenceService]

SETTINGS = Settings(
    cpu_resources=ResourceRequirements(requests={"cpu": "1", "memory": "2Gi"}, limits={"memory": "2Gi"}),
    gpu_resources=ResourceRequirements(requests={"cpu": "4", "memory": "16Gi"}, limits={"memory": "24Gi"}),
)


@pytest.mark.parametrize(
    ("spec", "requests", "limits"),
    [
        ({}, {"cpu": "1", "memory": "2Gi"}, {"memory": "2Gi"}),
        ({"accelerator": {"vendor": "cpu"}}, {"cpu": "1", "memory": "2Gi"}, {"memory": "2Gi"}),
        # One resource said by the service is the service's alone: no default limit below its request.
        ({"resources": {"requests": {"memory": "8Gi"}}}, {"cpu": "1", "memory": "8Gi"}, {}),
        ({"resources": {"limits": {"memory": "8Gi"}}}, {"cpu": "1"}, {"memory": "8Gi"}),
        (
            {"resources": {"limits": {"ephemeral-storage": "1Gi"}}},
            {"cpu": "1", "memory": "2Gi"},
            {"memory": "2Gi", "ephemeral-storage": "1Gi"},
        ),
        (
            {"accelerator": {"count": 2}},
            {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": 2},
            {"memory": "48Gi", "nvidia.com/gpu": 2},
        ),
        (
            {"accelerator": {"count": 1}, "engine": {"kvOffload": {"host": "8Gi"}}},
            {"cpu": "4", "memory": str(24 << 30), "nvidia.com/gpu": 1},
            {"memory": str(32 << 30), "nvidia.com/gpu": 1},
        ),
        ({"engine": {"kvOffload": {"host": "1Gi"}}}, {"cpu": "1", "memory": "2Gi"}, {"memory": "2Gi"}),
        (
            {"accelerator": {"mig": "1g.10gb"}, "resources": {"requests": {"cpu": 1, "memory": "4Gi"}}},
            {"cpu": 1, "memory": "4Gi", "nvidia.com/mig-1g.10gb": 1},
            {"nvidia.com/mig-1g.10gb": 1},
        ),
        (
            {"accelerator": {"mig": "1g.10gb+me"}, "resources": {"requests": {"cpu": 1, "memory": "4Gi"}}},
            {"cpu": 1, "memory": "4Gi", "nvidia.com/mig-1g.10gb.me": 1},
            {"nvidia.com/mig-1g.10gb.me": 1},
        ),
        (
            {
                "accelerator": {"resourceName": "example.com/gpu-shared"},
                "resources": {"limits": {"cpu": 1, "memory": 1}},
            },
            {"example.com/gpu-shared": 1},
            {"cpu": 1, "memory": 1, "example.com/gpu-shared": 1},
        ),
    ],
)
def test_resources_of_a_replica(
    make_service: MakeService, spec: dict[str, Any], requests: dict[str, Any], limits: dict[str, Any]
) -> None:
    service = make_service(**spec)
    found = container_resources(service.spec.resources, service.spec.accelerator, SETTINGS, service.spec.engine)
    assert (found.requests, found.limits) == (requests, limits)


@pytest.mark.parametrize(
    ("quantity", "factor", "product"),
    [(2, 3, 6), ("2", 3, "6"), ("500m", 4, "2000m"), ("16Gi", 3, "48Gi"), ("1.5Gi", 2, "3Gi"), ("0.5", 1, "0.5")],
)
def test_quantities_are_multiplied_in_their_unit(quantity: int | str, factor: int, product: int | str) -> None:
    assert times(quantity, factor) == product


def test_an_init_container_takes_no_device() -> None:
    resources = ResourceRequirements(requests={"cpu": 1, "nvidia.com/gpu": 2}, limits={"memory": "1Gi"})
    assert without_devices(resources) == ResourceRequirements(requests={"cpu": 1}, limits={"memory": "1Gi"})
