"""Where everything lives: names, folders and addresses of one cluster, all derived from its name and slot."""

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.errors import UsageError

DEFAULT_NAME = "default"
NAME_VARIABLE = "KVASIR_CLUSTER_NAME"
CLUSTER_DOMAIN = "cluster.local"
SLOTS = 8  # clusters that fit beside each other: slot i takes 10.(244+i)/16 for pods
PAUSE_IMAGE = "kvasir.dev/pause:1"

# System folders with names built into the kubelet or CNI: inside the node each is replaced by a folder of the state.
NODE_FOLDERS = ("/var/lib/kubelet", "/var/lib/cni", "/var/log/pods", "/var/log/containers")


@dataclass(frozen=True)
class Layout:
    """The folders and names of a cluster. Nothing outside `state`, `run` and `lock` is ever written."""

    name: str
    cache: Path

    @property
    def state(self) -> Path:
        return self.cache / ("cluster" if self.name == DEFAULT_NAME else f"cluster-{self.name}")

    @property
    def run(self) -> Path:
        return Path(f"/run/kvasir-cluster-{self.name}")

    @property
    def lock(self) -> Path:
        return self.cache / f"cluster-{self.name}.lock"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig; it exists only while the cluster is usable."""
        return self.state / "kubeconfig"

    @property
    def pki(self) -> Path:
        return self.state / "pki"

    @property
    def config(self) -> Path:
        return self.state / "config"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def audit_log(self) -> Path:
        """What service accounts asked of the API server: one JSON object a line (audit.k8s.io/v1)."""
        return self.state / "audit.log"

    @property
    def node_root(self) -> Path:
        """Holds what the node sees under NODE_FOLDERS, and containerd's and etcd's data."""
        return self.state / "node"

    @property
    def record(self) -> Path:
        """What `up` decided, as JSON: read by `status`, `down` and a second `up`."""
        return self.state / "cluster.json"

    @property
    def containerd_socket(self) -> Path:
        return self.run / "containerd.sock"

    @property
    def cgroup(self) -> str:
        """The cgroup below which all of the cluster's processes are, in every hierarchy."""
        return f"kvasir-cluster-{self.name}"

    @property
    def node_name(self) -> str:
        return "kvasir-node" if self.name == DEFAULT_NAME else f"kvasir-node-{self.name}"

    @property
    def context(self) -> str:
        return "kvasir" if self.name == DEFAULT_NAME else f"kvasir-{self.name}"


@dataclass(frozen=True)
class Addresses:
    """The cluster's own networks; slots keep clusters on one machine apart."""

    slot: int

    @property
    def interface(self) -> str:
        """The machine's end of the cable to the node."""
        return f"kvasir{self.slot}"

    @property
    def host(self) -> str:
        """The machine as the node and the pods see it."""
        return f"10.243.{self.slot}.1"

    @property
    def node(self) -> str:
        return f"10.243.{self.slot}.2"

    @property
    def link_cidr(self) -> str:
        return f"10.243.{self.slot}.0/30"

    @property
    def pod_cidr(self) -> str:
        return f"10.{244 + self.slot}.0.0/16"

    @property
    def node_pod_cidr(self) -> str:
        """The part of the pod network that belongs to the node."""
        return f"10.{244 + self.slot}.0.0/24"

    @property
    def service_cidr(self) -> str:
        return f"10.{96 + self.slot}.0.0/16"

    @property
    def api_service(self) -> str:
        return f"10.{96 + self.slot}.0.1"

    @property
    def dns_service(self) -> str:
        return f"10.{96 + self.slot}.0.10"

    @property
    def api_url(self) -> str:
        return f"https://{self.node}:6443"

    def overlaps(self, routes: list[str]) -> list[str]:
        """The given networks (CIDR) that collide with this cluster's own."""
        own = [ipaddress.ip_network(cidr) for cidr in (self.link_cidr, self.pod_cidr, self.service_cidr)]
        return [route for route in routes if any(net.overlaps(ipaddress.ip_network(route)) for net in own)]


def cache_root() -> Path:
    """`$KVASIR_CACHE_DIR`, else `$XDG_CACHE_HOME/kvasir`, else `~/.cache/kvasir`."""
    if configured := os.environ.get("KVASIR_CACHE_DIR"):
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvasir"


def chosen_name() -> str:
    """The cluster that is meant where none is named: `$KVASIR_CLUSTER_NAME`, else the default one."""
    return os.environ.get(NAME_VARIABLE) or DEFAULT_NAME


def layout_for(name: str) -> Layout:
    """The layout of the named cluster.

    Raises:
        UsageError: the name cannot be part of a node name and of an interface's comment.
    """
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?", name):
        raise UsageError(f"--name {name!r}: 1 to 20 of a-z, 0-9 and -, starting and ending with a letter or digit")
    return Layout(name, cache_root())
