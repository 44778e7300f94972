"""Devices of nodes, and which nodes a pod may use: as the scheduler judges."""

from typing import Any

import pytest

from kvasir_operator.api.v1alpha1 import ObjectMeta
from kvasir_operator.placement.inventory import Claim, Inventory, devices_of, is_device, read_demand, read_node
from kvasir_operator.resources.pod import build_pod
from kvasir_operator.resources.template_hash import RevisionTemplate
from kvasir_operator.settings import Settings
from tests.kvasir_operator.placement.nodes import GPU, gpu_node, service

A100, L4 = "NVIDIA-A100-SXM4-80GB", "NVIDIA-L4"
NODES = [
    gpu_node("a100", A100, 8, memory_mib=81920),
    gpu_node("l4", L4, 4, memory_mib=23034),
    gpu_node("cordoned", L4, 4, taints=[{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]),
    gpu_node("tainted", L4, 4, taints=[{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]),
    gpu_node("preferred", L4, 1, taints=[{"key": "old", "effect": "PreferNoSchedule"}]),
    gpu_node("mig", A100, 0, mig={"1g.10gb": 7}),
]
INVENTORY = Inventory(tuple(map(read_node, NODES)), ())


def suitable(**spec: Any) -> list[str]:
    """Nodes that the pods of such a service may go to."""
    template = RevisionTemplate.of(service(**spec), Settings())
    demand = read_demand(build_pod(ObjectMeta(name="s", namespace="n", uid="u"), template, "p", Settings())["spec"])
    assert demand is not None
    return [node.name for node in INVENTORY.suitable(demand)]


def node_term(*requirements: dict[str, Any], kind: str = "matchExpressions") -> dict[str, Any]:
    terms = [{kind: [each]} for each in requirements]
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}


SUITABLE = [
    ("one device", {}, ["a100", "l4", "tainted", "preferred"]),
    ("four of one node", {"accelerator": {"count": 4}}, ["a100", "l4", "tainted"]),
    ("more than any node has", {"accelerator": {"count": 16}}, []),
    ("a product, by its short name", {"accelerator": {"products": ["A100-SXM4-80GB"]}}, ["a100"]),
    ("an unknown product", {"accelerator": {"products": ["H100"]}}, []),
    ("memory", {"accelerator": {"minMemory": "40Gi"}}, ["a100"]),
    ("exactly so much memory", {"accelerator": {"minMemory": "80Gi"}}, ["a100"]),
    ("too much memory", {"accelerator": {"minMemory": "81Gi"}}, []),
    ("a slice", {"accelerator": {"mig": "1g.10gb"}}, ["mig"]),
    ("another slice", {"accelerator": {"mig": "3g.40gb"}}, []),
    ("a node by its name", {"nodeSelector": {"kubernetes.io/hostname": "l4"}}, ["l4"]),
    (
        "a taint that is tolerated",
        {"tolerations": [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}]},
        ["a100", "l4", "cordoned", "tainted", "preferred"],
    ),
    (
        "either of two",
        {
            "affinity": node_term(
                {"key": "kubernetes.io/hostname", "operator": "In", "values": ["l4"]},
                {"key": "kubernetes.io/hostname", "operator": "In", "values": ["a100"]},
            )
        },
        ["a100", "l4"],
    ),
    (
        "none of two",
        {"affinity": node_term({"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["l4", "a100"]})},
        ["tainted", "preferred"],
    ),
    (
        "a field",
        {
            "affinity": node_term(
                {"key": "metadata.name", "operator": "In", "values": ["preferred"]}, kind="matchFields"
            )
        },
        ["preferred"],
    ),
    ("a label that is absent", {"affinity": node_term({"key": "zone", "operator": "DoesNotExist"})}, None),
    ("a label that is not there", {"affinity": node_term({"key": "zone", "operator": "Exists"})}, []),
    (
        "less memory",
        {"affinity": node_term({"key": "nvidia.com/gpu.memory", "operator": "Lt", "values": ["30000"]})},
        ["l4", "tainted", "preferred"],
    ),
]


@pytest.mark.parametrize(("spec", "expected"), [row[1:] for row in SUITABLE], ids=[row[0] for row in SUITABLE])
def test_where_the_pods_of_a_service_may_go(spec: dict[str, Any], expected: list[str] | None) -> None:
    assert suitable(**spec) == (suitable() if expected is None else expected)


def test_a_pod_on_cpus_has_no_demand() -> None:
    assert read_demand({"containers": [{"name": "runtime", "resources": {"limits": {"cpu": "2"}}}]}) is None
    assert read_demand({}) is None


def test_devices_of_all_containers_count() -> None:
    one = {"name": "a", "resources": {"limits": {GPU: "1", "memory": "1Gi"}}}
    assert devices_of({"containers": [one, one, {"name": "b"}]}) == {GPU: 2}


@pytest.mark.parametrize(
    ("resource", "expected"),
    [
        (GPU, True),
        ("nvidia.com/mig-1g.10gb", True),
        ("amd.com/gpu", True),
        ("cpu", False),
        ("hugepages-2Mi", False),
        ("attachable-volumes-csi-x", False),
        ("node.kubernetes.io/x", False),
    ],
)
def test_what_a_device_is(resource: str, expected: bool) -> None:
    assert is_device(resource) == expected


def test_what_is_left_and_who_has_the_rest() -> None:
    """A node that shrank under its pods has none left."""
    claims = (
        Claim("team/a", "l4", GPU, 3),
        Claim("team/b", "l4", GPU, 1),
        Claim("team/b", "a100", GPU, 4),
        Claim("team/c", "preferred", GPU, 2),
        Claim("team/c", "mig", "nvidia.com/mig-1g.10gb", 1),
    )
    inventory = Inventory(INVENTORY.nodes, claims)
    left = {node.name: inventory.left(node, GPU) for node in inventory.nodes}
    assert left == {"a100": 4, "l4": 0, "cordoned": 4, "tainted": 4, "preferred": 0, "mig": 0}
    assert inventory.holders(inventory.nodes, GPU) == [("team/b", 5), ("team/a", 3), ("team/c", 2)]
    assert inventory.holders(inventory.nodes[:1], GPU) == [("team/b", 4)]


def test_memory_is_read_from_labels() -> None:
    """GPU feature discovery's, in MiB; a node without them says nothing."""
    by_name = {node.name: node for node in INVENTORY.nodes}
    assert (by_name["a100"].memory(GPU), by_name["l4"].memory(GPU)) == (80 * 2**30, 23034 * 2**20)
    assert by_name["mig"].memory("nvidia.com/mig-1g.10gb") == 10 * 2**30
    assert read_node({"metadata": {"name": "bare"}, "status": {"allocatable": {GPU: "2"}}}).memory(GPU) is None


def test_a_node_is_read_as_kubernetes_writes_it() -> None:
    node = read_node(
        {"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "31850m", "memory": "1Ki", GPU: "8"}}}
    )
    assert (node.devices, node.labels, node.taints, node.product) == ({GPU: 8}, {}, (), "")
    assert read_node({"metadata": {"name": "new"}}).devices == {}
