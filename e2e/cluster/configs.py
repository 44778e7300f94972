"""Configuration files of the node's programs, as pure functions that return plain data or text."""

import json
from typing import Any

from e2e.cluster.flags import Spec
from e2e.cluster.layout import CLUSTER_DOMAIN, PAUSE_IMAGE

# Small, because a developer's disk is often nearly full and a test cluster must not evict pods for it.
EVICTION = {
    "memory.available": "100Mi",
    "nodefs.available": "200Mi",
    "nodefs.inodesFree": "1%",
    "imagefs.available": "200Mi",
}


def kubelet_config(spec: Spec) -> dict[str, Any]:
    """A KubeletConfiguration (kubelet.config.k8s.io/v1beta1)."""
    pki = spec.layout.pki
    config: dict[str, Any] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": "0.0.0.0",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(pki / "kubelet-server.crt"),
        "tlsPrivateKeyFile": str(pki / "kubelet-server.key"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{spec.layout.cgroup}",
        "clusterDNS": [spec.addresses.dns_service],
        "clusterDomain": CLUSTER_DOMAIN,
        "resolvConf": str(spec.layout.config / "resolv.conf"),
        "evictionHard": EVICTION,
        "imageGCHighThresholdPercent": 100,  # 100 switches image garbage collection off
        "imageGCLowThresholdPercent": 99,
        "failSwapOn": False,
        "nodeStatusUpdateFrequency": "2s",  # so that Ready follows the runtime at once; heartbeats are Leases
        "serializeImagePulls": False,
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
    }
    return config | _newer_kubelet_fields(spec)


def _newer_kubelet_fields(spec: Spec) -> dict[str, Any]:
    """Fields that older kubelets refuse as unknown."""
    fields: dict[str, Any] = {}
    if spec.version.at_least(1, 27):
        fields["containerRuntimeEndpoint"] = f"unix://{spec.layout.containerd_socket}"
    if spec.version.at_least(1, 31) and not spec.facts.cgroup_v2:
        fields["failCgroupV1"] = False
    return fields


def audit_policy() -> dict[str, Any]:
    """An audit Policy (audit.k8s.io/v1): who asked for what, of service accounts outside kube-system alone."""
    quiet = {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]}
    told = {"level": "Metadata", "userGroups": ["system:serviceaccounts"], "omitStages": ["RequestReceived"]}
    rules = [quiet, told, {"level": "None"}]
    return {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": rules}


def kube_proxy_config(spec: Spec) -> dict[str, Any]:
    """A KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1); conntrack limits are the machine's."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "bindAddress": "0.0.0.0",
        "clientConnection": {"kubeconfig": str(spec.layout.config / "proxy.kubeconfig")},
        "clusterCIDR": spec.addresses.pod_cidr,
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "hostnameOverride": spec.layout.node_name,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "mode": "iptables",
    }


def cni_config(spec: Spec) -> dict[str, Any]:
    """One bridge for all pods; a pod reaches itself through a Service (hairpin) and the outside as the node."""
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": spec.addresses.node_pod_cidr}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": "/var/lib/cni/networks",
        },
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "kvasir", "plugins": [bridge, portmap]}


def containerd_config(spec: Spec) -> str:
    """The configuration of containerd 1.6 (version 2, TOML); inside the node `/run` is the node's own."""
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    runc = f"{cri}.containerd.runtimes.runc"
    # opt would make /opt/containerd; the snapshotters need file systems or devices that are not there.
    snapshotters = ["aufs", "btrfs", "devmapper", "zfs"]
    disabled = ["internal.v1.opt", "internal.v1.tracing", "tracing.processor.v1.otlp"]
    disabled += [f"snapshotter.v1.{name}" for name in snapshotters]
    lines = [
        "version = 2",
        f"root = {_toml(spec.layout.node_root / 'containerd')}",
        'state = "/run/containerd"',
        f"disabled_plugins = {json.dumps([f'io.containerd.{name}' for name in disabled])}",
        "[grpc]",
        f"address = {_toml(spec.layout.containerd_socket)}",
        f"[{cri}]",
        f"sandbox_image = {_toml(PAUSE_IMAGE)}",
        "disable_apparmor = true",  # or a profile would stay loaded in the machine's kernel
        f"restrict_oom_score_adj = {_toml(not spec.facts.may_lower_oom_score)}",
        f"[{cri}.cni]",
        f"bin_dir = {_toml(spec.tools.cni)}",
        f"conf_dir = {_toml(spec.layout.config / 'cni')}",
        f"[{cri}.containerd]",
        f"snapshotter = {_toml(spec.facts.snapshotter)}",
        f"[{runc}]",
        'runtime_type = "io.containerd.runc.v2"',
        f"[{runc}.options]",
        f"BinaryName = {_toml(spec.tools.runc)}",
        "SystemdCgroup = false",
        f"[{cri}.registry]",
        f"config_path = {_toml(spec.layout.config / 'registries')}",
    ]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    """A boolean or a basic string: JSON's form is TOML's for both."""
    return json.dumps(value if isinstance(value, bool) else str(value))


def kubeconfig(server: str, context: str, user: str, authority: str, certificate: str, key: str) -> dict[str, Any]:
    """A kubeconfig with one context; the last three arguments are base64 of PEM."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": context, "cluster": {"server": server, "certificate-authority-data": authority}}],
        "users": [{"name": user, "user": {"client-certificate-data": certificate, "client-key-data": key}}],
        "contexts": [{"name": context, "context": {"cluster": context, "user": user}}],
        "current-context": context,
    }
