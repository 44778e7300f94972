"""Nodes with GPUs as device plugin and GPU feature discovery describe them, and services that want some."""

from typing import Any

from kvasir_operator.api.v1alpha1 import InferenceService

GPU = "nvidia.com/gpu"
Manifest = dict[str, Any]


def gpu_node(
    name: str,
    product: str = "NVIDIA-L4",
    count: int = 1,
    *,
    memory_mib: int = 23034,
    mig: dict[str, int] | None = None,
    taints: list[Manifest] | None = None,
) -> Manifest:
    """A node; `mig` is slices by profile, of 10 GiB each."""
    slices = {f"nvidia.com/mig-{profile}": number for profile, number in (mig or {}).items()}
    labels = {
        "kubernetes.io/hostname": name,
        "nvidia.com/gpu.present": "true",
        "nvidia.com/gpu.product": product,
        "nvidia.com/gpu.memory": str(memory_mib),
        **{f"{resource}.memory": "10240" for resource in slices},
    }
    devices = {resource: str(number) for resource, number in {GPU: count, **slices}.items()}
    return {
        "metadata": {"name": name, "uid": f"node-{name}", "labels": labels},
        "spec": {"taints": taints} if taints else {},
        "status": {"allocatable": {"cpu": "64", "memory": "512Gi", **devices}},
    }


def service(**spec: Any) -> InferenceService:
    given = {"model": {"source": {"uri": "pvc://models/m"}}, "accelerator": {"count": 1}}
    return InferenceService.from_manifest(
        {"metadata": {"name": "s", "namespace": "n", "uid": "u"}, "spec": given | spec}
    )
