"""Which nodes a pod may go to."""

from typing import Any

import pytest

from kvasir_operator.api.v1alpha1 import AcceleratorSpec, Affinity, Toleration
from kvasir_operator.resources.placement import affinity, device_demands, tolerations

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
T4 = AcceleratorSpec(products=["NVIDIA-T4"])
DEMAND = {"key": "nvidia.com/gpu.product", "operator": "In", "values": ["NVIDIA-T4"]}
ZONE = {"key": "zone", "operator": "In", "values": ["a"]}
GPU_TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


def required(*terms: dict[str, Any]) -> dict[str, Any]:
    return {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": list(terms)}}}


@pytest.mark.parametrize(
    ("given", "accelerator", "expected"),
    [
        (None, None, None),
        (None, AcceleratorSpec(), None),
        ({"podAntiAffinity": {}}, AcceleratorSpec(vendor="cpu"), {"podAntiAffinity": {}}),
        (None, T4, required({"matchExpressions": [DEMAND]})),
        ({"podAntiAffinity": {}}, T4, {"podAntiAffinity": {}, **required({"matchExpressions": [DEMAND]})}),
        # Terms are alternatives: the demand must hold in each.
        (
            required({"matchExpressions": [ZONE]}, {"matchFields": [{"key": "metadata.name"}]}),
            T4,
            required(
                {"matchExpressions": [ZONE, DEMAND]},
                {"matchFields": [{"key": "metadata.name"}], "matchExpressions": [DEMAND]},
            ),
        ),
        (
            {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1}]}},
            T4,
            {
                "nodeAffinity": {
                    "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1}],
                    REQUIRED: {"nodeSelectorTerms": [{"matchExpressions": [DEMAND]}]},
                }
            },
        ),
    ],
)
def test_the_accelerators_demands_are_added_to_the_services_affinity(
    given: dict[str, Any] | None, accelerator: AcceleratorSpec | None, expected: dict[str, Any] | None
) -> None:
    own = Affinity.model_validate(given) if given is not None else None
    assert affinity(own, accelerator) == expected


@pytest.mark.parametrize(
    ("memory", "more_than"), [("40Gi", "40959"), ("24576Mi", "24575"), ("16G", "15258"), ("1", "0")]
)
def test_least_memory_is_compared_in_whole_mebibytes(memory: str, more_than: str) -> None:
    """16G are 15258.8 MiB: a device of 15259 MiB has them, one of 15258 has not."""
    accelerator = AcceleratorSpec.model_validate({"minMemory": memory})
    assert device_demands(accelerator) == [{"key": "nvidia.com/gpu.memory", "operator": "Gt", "values": [more_than]}]


def test_the_usual_taint_of_gpu_nodes_is_tolerated_once() -> None:
    own = Toleration(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")
    assert tolerations([], T4) == [GPU_TOLERATION]
    assert tolerations([own], T4) == [GPU_TOLERATION]
    assert tolerations([], None) == tolerations([], AcceleratorSpec(vendor="cpu")) == []
