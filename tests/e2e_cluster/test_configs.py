"""Configuration files of the node's programs."""

import tomllib
from typing import Any

import pytest

from e2e.cluster import configs

NEWER = ("containerRuntimeEndpoint", "failCgroupV1")


@pytest.mark.parametrize(
    ("version", "cgroup_v2", "expected"),
    [
        ("1.20", False, {}),
        ("1.24", False, {}),
        ("1.27", False, {"containerRuntimeEndpoint": "unix:///run/kvasir-cluster-default/containerd.sock"}),
        (
            "1.31",
            False,
            {"containerRuntimeEndpoint": "unix:///run/kvasir-cluster-default/containerd.sock", "failCgroupV1": False},
        ),
        ("1.31", True, {"containerRuntimeEndpoint": "unix:///run/kvasir-cluster-default/containerd.sock"}),
        (
            "1.36",
            False,
            {"containerRuntimeEndpoint": "unix:///run/kvasir-cluster-default/containerd.sock", "failCgroupV1": False},
        ),
    ],
)
def test_kubelet_fields_of_newer_versions(
    make_spec: Any, version: str, cgroup_v2: bool, expected: dict[str, Any]
) -> None:
    """Older kubelets refuse a field that they do not know, so each appears with the release that brought it."""
    config = configs.kubelet_config(make_spec(version, cgroup_v2=cgroup_v2))
    assert {name: config[name] for name in NEWER if name in config} == expected


def test_kubelet_keeps_images_and_pods_on_a_nearly_full_disk(make_spec: Any) -> None:
    """Image garbage collection is off and eviction waits until almost nothing is left."""
    config = configs.kubelet_config(make_spec("1.20"))
    assert config["imageGCHighThresholdPercent"] == 100
    assert config["imageGCLowThresholdPercent"] < config["imageGCHighThresholdPercent"]
    assert config["evictionHard"]["imagefs.available"] == "200Mi"


def test_kubelet_trusts_no_anonymous_caller_and_names_the_dns_service(make_spec: Any) -> None:
    """Its API asks the API server who may do what; pods get the ordinary resolver settings."""
    config = configs.kubelet_config(make_spec("1.20"))
    assert config["authentication"]["anonymous"] == {"enabled": False}
    assert config["authorization"] == {"mode": "Webhook"}
    assert config["clusterDNS"] == ["10.96.0.10"]
    assert config["clusterDomain"] == "cluster.local"
    assert config["cgroupRoot"] == "/kvasir-cluster-default"


@pytest.mark.parametrize("may_lower", [True, False])
def test_containerd_config_is_toml_and_follows_the_machine(make_spec: Any, may_lower: bool) -> None:
    """Without CAP_SYS_RESOURCE, containerd must not try to lower OOM scores."""
    parsed = tomllib.loads(configs.containerd_config(make_spec("1.20", may_lower_oom_score=may_lower)))
    cri = parsed["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri["restrict_oom_score_adj"] is not may_lower
    assert cri["sandbox_image"] == "kvasir.dev/pause:1"
    assert cri["cni"] == {"bin_dir": "/tools/cni", "conf_dir": "/cache/cluster/config/cni"}
    assert cri["containerd"]["snapshotter"] == "overlayfs"
    assert cri["containerd"]["runtimes"]["runc"]["options"] == {"BinaryName": "/tools/runc", "SystemdCgroup": False}
    assert parsed["grpc"]["address"] == "/run/kvasir-cluster-default/containerd.sock"
    assert "io.containerd.internal.v1.opt" in parsed["disabled_plugins"]


def test_pods_get_addresses_of_the_nodes_network_and_hairpin(make_spec: Any) -> None:
    """The bridge takes the /24 that the node is given."""
    bridge, portmap = configs.cni_config(make_spec("1.20"))["plugins"]
    assert bridge["ipam"]["ranges"] == [[{"subnet": "10.244.0.0/24"}]]
    assert bridge["hairpinMode"] is True
    assert portmap["type"] == "portmap"


def test_kube_proxy_leaves_the_machines_conntrack_limits(make_spec: Any) -> None:
    """In a network namespace of its own it may not set them, and need not."""
    conntrack = configs.kube_proxy_config(make_spec("1.20"))["conntrack"]
    assert (conntrack["maxPerCore"], conntrack["min"]) == (0, 0)


def test_service_accounts_are_audited_but_not_kubernetes_own() -> None:
    """The first rule that matches decides."""
    levels = [(rule.get("userGroups"), rule["level"]) for rule in configs.audit_policy()["rules"]]
    assert levels == [
        (["system:serviceaccounts:kube-system"], "None"),
        (["system:serviceaccounts"], "Metadata"),
        (None, "None"),
    ]
