"""Nodes and devices that only the API knows: GPU scheduling by the real scheduler, without GPUs."""

import datetime as dt
import re
from dataclasses import dataclass

from e2e.cluster.api import Api, Object
from e2e.cluster.errors import UsageError

API_ONLY = "kvasir.dev/api-only"  # label and taint of nodes without a machine
FAKE_GPUS = "kvasir.dev/fake-gpus"  # annotation on the real node: how many devices it claims
GPU = "nvidia.com/gpu"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
STATUS_CONDITIONS = ("MemoryPressure", "DiskPressure", "PIDPressure")


@dataclass(frozen=True)
class Gpus:
    """The GPUs of a node, as the device plugin and GPU feature discovery would tell of them."""

    product: str
    count: int
    memory: int  # MiB per GPU
    mig: tuple[tuple[str, int], ...] = ()  # profile (1g.10gb) and number of devices on the node

    @property
    def resources(self) -> dict[str, str]:
        """Extended resources. In the mixed MIG strategy a GPU that is cut up is no longer a whole one."""
        if self.mig:
            return {GPU: "0"} | {f"nvidia.com/mig-{profile}": str(number) for profile, number in self.mig}
        return {GPU: str(self.count)}

    @property
    def labels(self) -> dict[str, str]:
        labels = {
            "nvidia.com/gpu.present": "true",
            "nvidia.com/gpu.product": self.product,
            "nvidia.com/gpu.memory": str(self.memory),
            "nvidia.com/gpu.count": str(self.count),
            "nvidia.com/gpu.replicas": "1",
            "nvidia.com/gpu.family": family(self.product),
            "nvidia.com/gpu.machine": "kvasir",
            "nvidia.com/mig.capable": str(family(self.product) in ("ampere", "hopper", "blackwell")).lower(),
            "nvidia.com/mig.strategy": "mixed" if self.mig else "none",
        }
        for profile, number in self.mig:
            labels |= {
                f"nvidia.com/mig-{profile}.count": str(number),
                f"nvidia.com/mig-{profile}.memory": str(mig_memory(profile)),
                f"nvidia.com/mig-{profile}.product": f"{self.product}-MIG-{profile}",
            }
        return labels


FAMILIES = (
    (r"B100|B200|B300|GB200|GB300", "blackwell"),
    (r"H100|H200|H800|H20|GH200", "hopper"),
    (r"L4|L40|L40S|RTX-[456]000-Ada.*|GeForce-RTX-40.*", "ada-lovelace"),
    (r"A2|A10|A10G|A16|A30|A40|A100|A800|RTX-A\d+|GeForce-RTX-30.*", "ampere"),
    (r"T4|RTX-[5-8]000|GeForce-RTX-20.*", "turing"),
    (r"V100", "volta"),
    (r"P4|P40|P100", "pascal"),
)


def family(product: str) -> str:
    """The architecture as GPU feature discovery labels it; `unknown` for a product that is not in the table."""
    name = re.sub(r"^(NVIDIA|Tesla)-", "", re.sub(r"^NVIDIA-", "", product))
    return next((family for pattern, family in FAMILIES if re.match(rf"({pattern})(-|$)", name)), "unknown")


def mig_memory(profile: str) -> int:
    """MiB of a MIG profile: `1g.10gb` has 10 GiB nominally."""
    return int(profile.split(".")[1].removesuffix("gb")) * 1024


def parse_mig(text: str) -> tuple[str, int]:
    """Reads `1g.10gb=7`.

    Raises:
        UsageError: it is of another form.
    """
    found = re.fullmatch(r"(\d+g\.\d+gb)=(\d+)", text)
    if not found:
        raise UsageError(f"--mig {text!r}: expected PROFILE=NUMBER, such as 1g.10gb=7")
    return found[1], int(found[2])


def api_only_node(name: str, gpus: Gpus | None, cpu: str, memory: str, version: str) -> Object:
    """A node without a machine. It is Ready as long as its Lease is renewed; its taint keeps ordinary pods away."""
    resources = {"cpu": cpu, "memory": memory, "pods": "110", "ephemeral-storage": "100Gi"}
    resources |= gpus.resources if gpus else {}
    labels = {
        API_ONLY: "true",
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
    }
    return {
        "metadata": {"name": name, "labels": labels | (gpus.labels if gpus else {})},
        "spec": {"taints": [{"key": API_ONLY, "value": "true", "effect": "NoSchedule"}]},
        "status": {
            "capacity": resources,
            "allocatable": resources,
            "conditions": _conditions(),
            "nodeInfo": _node_info(version),
        },
    }


def _conditions() -> list[Object]:
    now = timestamp()
    wanted = {"Ready": "True"} | dict.fromkeys(STATUS_CONDITIONS, "False")
    times = {"lastHeartbeatTime": now, "lastTransitionTime": now}
    return [{"type": t, "status": s, "reason": "ApiOnly", "message": "no machine", **times} for t, s in wanted.items()]


def _node_info(version: str) -> dict[str, str]:
    known = {"kubeletVersion": version, "kubeProxyVersion": version}
    known |= {"operatingSystem": "linux", "architecture": "amd64"}
    unknown = ("machineID", "systemUUID", "bootID", "kernelVersion", "osImage", "containerRuntimeVersion")
    return dict.fromkeys(unknown, "") | known


def timestamp(*, microseconds: bool = False) -> str:
    now = dt.datetime.now(dt.UTC)
    return now.strftime("%Y-%m-%dT%H:%M:%S.%fZ" if microseconds else "%Y-%m-%dT%H:%M:%SZ")


def add(api: Api, count: int, prefix: str, gpus: Gpus | None, cpu: str, memory: str) -> list[str]:
    """Creates `count` nodes with the first free names `PREFIX-1`, `PREFIX-2`, ... and returns the names."""
    version = api.get("/version")["gitVersion"]
    names: list[str] = []
    number = 0
    while len(names) < count:
        number += 1
        name = f"{prefix}-{number}"
        renew_lease(api, name)
        if api.create("/api/v1/nodes", api_only_node(name, gpus, cpu, memory, version)):
            names.append(name)
    return names


def remove(api: Api, names: list[str]) -> list[str]:
    """Deletes API-only nodes, all when no name is given, with their Leases and what was scheduled on them.

    Raises:
        UsageError: a name is not that of an API-only node; nothing is deleted then.
    """
    present = api_only_names(api)
    if unknown := sorted(set(names) - set(present)):
        raise UsageError(f"not API-only nodes: {', '.join(unknown)}; there are: {', '.join(present) or 'none'}")
    for name in names or present:
        api.delete(f"/api/v1/nodes/{name}")
        api.delete(f"{LEASES}/{name}")
        for pod in api.get("/api/v1/pods", fieldSelector=f"spec.nodeName={name}")["items"]:
            path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
            api.delete(path + "?gracePeriodSeconds=0")  # nobody would ever confirm that it has ended
    return names or present


def api_only_names(api: Api) -> list[str]:
    return [n["metadata"]["name"] for n in api.get("/api/v1/nodes", labelSelector=f"{API_ONLY}=true")["items"]]


def renew_lease(api: Api, name: str) -> None:
    """What a kubelet does every ten seconds to stay alive in the eyes of the node controller."""
    spec = {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": timestamp(microseconds=True)}
    if not api.create(LEASES, {"metadata": {"name": name}, "spec": spec}):
        api.merge(f"{LEASES}/{name}", {"spec": spec})


def claim_gpus(api: Api, node: str, gpus: Gpus) -> None:
    """Gives a real node devices that only the API knows; with a count of 0 takes them away again, labels too."""
    labels: dict[str, str | None] = dict(gpus.labels) if gpus.count else dict.fromkeys(gpus.labels)
    annotations = {FAKE_GPUS: str(gpus.count) if gpus.count else None}
    api.merge(f"/api/v1/nodes/{node}", {"metadata": {"labels": labels, "annotations": annotations}})
    claim_capacity(api, node, gpus.count)


def claim_capacity(api: Api, node: str, count: int) -> None:
    """Sets capacity and allocatable; the kubelet's own updates patch only what it knows and leave them."""
    value = {GPU: str(count) if count else None}
    api.merge(f"/api/v1/nodes/{node}/status", {"status": {"capacity": value, "allocatable": value}})
