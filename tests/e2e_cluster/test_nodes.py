"""Nodes and GPUs that only the API knows."""

import pytest

from e2e.cluster.errors import UsageError
from e2e.cluster.nodes import API_ONLY, Gpus, api_only_node, family, parse_mig


@pytest.mark.parametrize(
    ("product", "expected"),
    [
        ("NVIDIA-A100-SXM4-80GB", "ampere"),
        ("A100-SXM4-80GB", "ampere"),
        ("NVIDIA-A10G", "ampere"),
        ("NVIDIA-H100-80GB-HBM3", "hopper"),
        ("NVIDIA-H200", "hopper"),
        ("NVIDIA-L4", "ada-lovelace"),
        ("NVIDIA-L40S", "ada-lovelace"),
        ("NVIDIA-B200", "blackwell"),
        ("Tesla-T4", "turing"),
        ("NVIDIA-Tesla-V100-SXM2-16GB", "volta"),
        ("Something-Else", "unknown"),
    ],
)
def test_family_of_a_product(product: str, expected: str) -> None:
    """As GPU feature discovery labels it."""
    assert family(product) == expected


def test_a_node_with_whole_gpus() -> None:
    """Capacity equals allocatable, labels describe the GPUs, the taint keeps ordinary pods away."""
    node = api_only_node("gpu-1", Gpus("NVIDIA-A100-SXM4-80GB", 8, 81920), "64", "512Gi", "v1.20.2")
    assert node["status"]["allocatable"] == node["status"]["capacity"]
    assert node["status"]["allocatable"]["nvidia.com/gpu"] == "8"
    labels = node["metadata"]["labels"]
    assert labels["nvidia.com/gpu.memory"] == "81920"
    assert labels["nvidia.com/gpu.count"] == "8"
    assert labels["nvidia.com/mig.strategy"] == "none"
    assert node["spec"]["taints"] == [{"key": API_ONLY, "value": "true", "effect": "NoSchedule"}]
    ready = [c["status"] for c in node["status"]["conditions"] if c["type"] == "Ready"]
    assert ready == ["True"]


def test_a_node_with_mig_devices() -> None:
    """In the mixed strategy the slices are resources of their own and no whole GPU is left."""
    gpus = Gpus("NVIDIA-A100-SXM4-80GB", 1, 81920, (("1g.10gb", 7),))
    assert gpus.resources == {"nvidia.com/gpu": "0", "nvidia.com/mig-1g.10gb": "7"}
    assert gpus.labels["nvidia.com/mig-1g.10gb.memory"] == "10240"
    assert gpus.labels["nvidia.com/mig-1g.10gb.product"] == "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb"
    assert gpus.labels["nvidia.com/mig.strategy"] == "mixed"


def test_mig_profiles_are_parsed() -> None:
    """A profile and a number."""
    assert parse_mig("3g.40gb=2") == ("3g.40gb", 2)


@pytest.mark.parametrize("text", ["1g.10gb", "1g=7", "1g.10gb=x", "=7"])
def test_bad_mig_profiles_are_refused_by_name(text: str) -> None:
    """The message shows what was given and the form that is wanted."""
    with pytest.raises(UsageError, match="PROFILE=NUMBER"):
        parse_mig(text)
