"""Command lines of etcd and of the Kubernetes servers, as pure functions of version, folders and addresses.

What changed between 1.20 and 1.36 and matters here:

- `--port` (insecure port of controller manager and scheduler) must be closed before 1.24 and is unknown from 1.24.
- `--network-plugin`, `--cni-*` belonged to dockershim: needed before 1.24, unknown from 1.24.
- `--container-runtime=remote` is needed before 1.24, ignored until 1.26 and unknown from 1.27.
- `--container-runtime-endpoint` moved into the kubelet's configuration in 1.27; the flag is for older ones.
- `--pod-infra-container-image` protects the pause image from garbage collection before 1.27.
"""

from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.layout import CLUSTER_DOMAIN, PAUSE_IMAGE, Addresses, Layout
from e2e.cluster.versions import KubeVersion


@dataclass(frozen=True)
class Tools:
    """Paths of the programs that do not come with Kubernetes."""

    etcd: Path
    containerd: Path
    ctr: Path
    runc: Path
    cni: Path  # a folder


@dataclass(frozen=True)
class NodeFacts:
    """What the machine allows; decides a few settings of containerd and the kubelet."""

    cgroup_v2: bool
    may_lower_oom_score: bool  # CAP_SYS_RESOURCE
    snapshotter: str  # overlayfs, or native where the state's file system cannot be an upper layer


@dataclass(frozen=True)
class Spec:
    """One cluster, decided."""

    layout: Layout
    addresses: Addresses
    version: KubeVersion
    binaries: Path
    tools: Tools
    facts: NodeFacts


def etcd_flags(spec: Spec) -> list[str]:
    pki = spec.layout.pki
    return [
        "--name=kvasir",
        f"--data-dir={spec.layout.node_root / 'etcd'}",
        "--listen-client-urls=https://127.0.0.1:2379",
        "--advertise-client-urls=https://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        f"--cert-file={pki / 'etcd.crt'}",
        f"--key-file={pki / 'etcd.key'}",
        f"--trusted-ca-file={pki / 'etcd-ca.crt'}",
        "--client-cert-auth",
    ]


def api_server_flags(spec: Spec) -> list[str]:
    pki = spec.layout.pki
    return [
        "--bind-address=0.0.0.0",
        "--secure-port=6443",
        f"--advertise-address={spec.addresses.node}",
        "--allow-privileged=true",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--etcd-servers=https://127.0.0.1:2379",
        f"--etcd-cafile={pki / 'etcd-ca.crt'}",
        f"--etcd-certfile={pki / 'apiserver-etcd-client.crt'}",
        f"--etcd-keyfile={pki / 'apiserver-etcd-client.key'}",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--tls-cert-file={pki / 'apiserver.crt'}",
        f"--tls-private-key-file={pki / 'apiserver.key'}",
        f"--kubelet-client-certificate={pki / 'apiserver-kubelet-client.crt'}",
        f"--kubelet-client-key={pki / 'apiserver-kubelet-client.key'}",
        f"--kubelet-certificate-authority={pki / 'ca.crt'}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--requestheader-client-ca-file={pki / 'front-proxy-ca.crt'}",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-username-headers=X-Remote-User",
        f"--proxy-client-cert-file={pki / 'front-proxy-client.crt'}",
        f"--proxy-client-key-file={pki / 'front-proxy-client.key'}",
        f"--service-account-issuer=https://kubernetes.default.svc.{CLUSTER_DOMAIN}",
        f"--service-account-key-file={pki / 'service-account.pub'}",
        f"--service-account-signing-key-file={pki / 'service-account.key'}",
        f"--service-cluster-ip-range={spec.addresses.service_cidr}",
        f"--audit-policy-file={spec.layout.config / 'audit-policy.yaml'}",
        f"--audit-log-path={spec.layout.audit_log}",
        "--audit-log-maxsize=200",  # MiB; then a second file is begun, and no more kept than that one
        "--audit-log-maxbackup=1",
    ]


def controller_manager_flags(spec: Spec) -> list[str]:
    pki = spec.layout.pki
    return [
        *_client_flags(spec, "controller-manager"),
        # `up` gives the node its pod network: before 1.22 the node IPAM controller first sleeps for 10 s.
        "--allocate-node-cidrs=false",
        f"--service-cluster-ip-range={spec.addresses.service_cidr}",
        f"--cluster-signing-cert-file={pki / 'ca.crt'}",
        f"--cluster-signing-key-file={pki / 'ca.key'}",
        f"--root-ca-file={pki / 'ca.crt'}",
        f"--service-account-private-key-file={pki / 'service-account.key'}",
        "--use-service-account-credentials=true",
        "--flex-volume-plugin-dir=/var/lib/kubelet/volume-plugins",  # by default it makes a folder in /usr/libexec
    ]


def scheduler_flags(spec: Spec) -> list[str]:
    return _client_flags(spec, "scheduler")


def _client_flags(spec: Spec, identity: str) -> list[str]:
    kubeconfig = spec.layout.config / f"{identity}.kubeconfig"
    flags = [
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
    ]
    return flags if spec.version.at_least(1, 24) else [*flags, "--port=0"]


def kubelet_flags(spec: Spec) -> list[str]:
    flags = [
        f"--config={spec.layout.config / 'kubelet.yaml'}",
        f"--kubeconfig={spec.layout.config / 'kubelet.kubeconfig'}",
        f"--hostname-override={spec.layout.node_name}",
        f"--node-ip={spec.addresses.node}",
    ]
    if not spec.version.at_least(1, 27):
        flags += [
            f"--container-runtime-endpoint=unix://{spec.layout.containerd_socket}",
            f"--pod-infra-container-image={PAUSE_IMAGE}",
        ]
    if not spec.version.at_least(1, 24):
        flags += [
            "--container-runtime=remote",
            "--network-plugin=cni",
            f"--cni-conf-dir={spec.layout.config / 'cni'}",
            f"--cni-bin-dir={spec.tools.cni}",
        ]
    return flags


def kube_proxy_flags(spec: Spec) -> list[str]:
    return [f"--config={spec.layout.config / 'kube-proxy.yaml'}"]
