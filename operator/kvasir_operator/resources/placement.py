"""Which nodes a pod may go to: what the accelerator demands, added to what the service says itself."""

import math
from collections.abc import Sequence
from typing import Any, Final

from kvasir_operator.api.v1alpha1 import AcceleratorSpec, Affinity, Toleration
from kvasir_operator.resources import names

Manifest = dict[str, Any]

_REQUIRED: Final = "requiredDuringSchedulingIgnoredDuringExecution"
_MEBIBYTE: Final = 2**20


def affinity(given: Affinity | None, accelerator: AcceleratorSpec | None) -> Manifest | None:
    """The service's affinity with the accelerator's demands on nodes added; None where there is neither.

    Node selector terms are alternatives, so the demands are added to each of them.
    """
    demands = device_demands(accelerator)
    own = given.to_manifest() if given is not None else {}
    return _narrowed(own, demands) if demands else own or None


def _narrowed(own: Manifest, demands: list[Manifest]) -> Manifest:
    """An affinity with demands on nodes added to every term."""
    node = own.get("nodeAffinity") or {}
    terms = (node.get(_REQUIRED) or {}).get("nodeSelectorTerms") or [{}]
    narrowed = [{**term, "matchExpressions": [*term.get("matchExpressions", []), *demands]} for term in terms]
    return {**own, "nodeAffinity": {**node, _REQUIRED: {"nodeSelectorTerms": narrowed}}}


def device_demands(accelerator: AcceleratorSpec | None) -> list[Manifest]:
    """Node selector requirements on the labels of GPU feature discovery."""
    if accelerator is None or accelerator.resource() is None:
        return []
    demands = []
    if accelerator.products:
        values = [name for product in accelerator.products for name in product_labels(product)]
        demands.append({"key": names.GPU_PRODUCT_LABEL, "operator": "In", "values": values})
    if accelerator.min_memory is not None:
        # The label is in whole MiB, and there is Gt but no Ge: 40Gi is at least 40960 MiB, more than 40959.
        least = math.ceil(accelerator.min_memory.bytes / _MEBIBYTE)
        demands.append({"key": names.GPU_MEMORY_LABEL, "operator": "Gt", "values": [str(least - 1)]})
    return demands


def place_on(pod: Manifest, products: Sequence[str]) -> None:
    """Narrow a pod's manifest, in place, to nodes with one of these products, and note that on it."""
    demand = {"key": names.GPU_PRODUCT_LABEL, "operator": "In", "values": list(products)}
    own = pod["spec"].get("affinity") or {}
    pod["spec"]["affinity"] = _narrowed(own, [demand])
    pod["metadata"].setdefault("annotations", {})[names.PRODUCTS_ANNOTATION] = ",".join(products)


def product_labels(product: str) -> list[str]:
    """The label values that mean the product: A100-SXM4-80GB is NVIDIA-A100-SXM4-80GB, with older drivers bare."""
    return [product] if product.startswith("NVIDIA-") else [f"NVIDIA-{product}", product]


def tolerations(given: list[Toleration], accelerator: AcceleratorSpec | None) -> list[Manifest]:
    """The service's tolerations, and on GPUs that of the taint which keeps other pods from GPU nodes."""
    written = [each.to_manifest() for each in given]
    if accelerator is None or accelerator.resource() is None:
        return written
    gpu = {"key": names.GPU_TAINT, "operator": "Exists", "effect": "NoSchedule"}
    return written if gpu in written else [*written, gpu]
