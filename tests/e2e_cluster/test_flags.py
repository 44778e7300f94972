"""Flags per version: what a server of that release needs, and nothing that it does not know."""

from typing import Any

import pytest

from e2e.cluster import flags

ENDPOINT = "--container-runtime-endpoint=unix:///run/kvasir-cluster-default/containerd.sock"
PAUSE = "--pod-infra-container-image=kvasir.dev/pause:1"
DOCKERSHIM = [
    "--container-runtime=remote",
    "--network-plugin=cni",
    "--cni-conf-dir=/cache/cluster/config/cni",
    "--cni-bin-dir=/tools/cni",
]
ALWAYS = [
    "--config=/cache/cluster/config/kubelet.yaml",
    "--kubeconfig=/cache/cluster/config/kubelet.kubeconfig",
    "--hostname-override=kvasir-node",
    "--node-ip=10.243.0.2",
]


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("1.20", [*ALWAYS, ENDPOINT, PAUSE, *DOCKERSHIM]),
        ("1.23", [*ALWAYS, ENDPOINT, PAUSE, *DOCKERSHIM]),
        ("1.24", [*ALWAYS, ENDPOINT, PAUSE]),
        ("1.26", [*ALWAYS, ENDPOINT, PAUSE]),
        ("1.27", ALWAYS),
        ("1.31", ALWAYS),
        ("1.36", ALWAYS),
    ],
)
def test_kubelet_flags(make_spec: Any, version: str, expected: list[str]) -> None:
    """Flags leave the kubelet in 1.24 (dockershim's) and 1.27 (the runtime's end point)."""
    assert flags.kubelet_flags(make_spec(version)) == expected


@pytest.mark.parametrize(
    ("version", "closes_insecure_port"),
    [("1.20", True), ("1.23", True), ("1.24", False), ("1.27", False), ("1.31", False), ("1.36", False)],
)
def test_insecure_ports_of_scheduler_and_controller_manager(
    make_spec: Any, version: str, closes_insecure_port: bool
) -> None:
    """Before 1.24 they are closed by `--port=0`, which later releases refuse."""
    spec = make_spec(version)
    for flag_list in (flags.scheduler_flags(spec), flags.controller_manager_flags(spec)):
        assert ("--port=0" in flag_list) is closes_insecure_port
        assert "--leader-elect=false" in flag_list


@pytest.mark.parametrize("version", ["1.20", "1.24", "1.27", "1.31", "1.36"])
def test_api_server_flags_are_the_same_for_all_versions(make_spec: Any, version: str) -> None:
    """No flag that it needs has changed between 1.20 and 1.36."""
    found = flags.api_server_flags(make_spec(version))
    assert found == flags.api_server_flags(make_spec("1.20"))
    assert {
        "--advertise-address=10.243.0.2",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
    } <= set(found)


@pytest.mark.parametrize("render", [flags.etcd_flags, flags.api_server_flags, flags.controller_manager_flags])
def test_no_flag_is_given_twice(make_spec: Any, render: Any) -> None:
    """A flag given twice would silently lose its first value."""
    names = [flag.split("=")[0] for flag in render(make_spec("1.20"))]
    assert len(names) == len(set(names))


def test_etcd_listens_on_loopback_with_client_certificates(make_spec: Any) -> None:
    """Pods on the node's own network cannot read secrets from etcd."""
    found = flags.etcd_flags(make_spec("1.20"))
    assert "--listen-client-urls=https://127.0.0.1:2379" in found
    assert "--client-cert-auth" in found
