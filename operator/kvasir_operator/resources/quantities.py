"""Resources of the runtime's container: the service's own, the operator's defaults, and the devices."""

import math
import re
from decimal import Decimal
from typing import Final

from kvasir_operator.api.base import Quantity
from kvasir_operator.api.kubernetes import ResourceRequirements, parse_quantity
from kvasir_operator.api.v1alpha1 import AcceleratorSpec, EngineSpec
from kvasir_operator.settings import Settings

_QUANTITY: Final = re.compile(r"([0-9.]+)(.*)")

Amounts = dict[str, int | str]


def container_resources(
    given: ResourceRequirements | None,
    accelerator: AcceleratorSpec | None,
    settings: Settings,
    engine: EngineSpec | None = None,
) -> ResourceRequirements:
    """Resources of the runtime's container.

    A resource (cpu, memory, …) that the service requests or limits is the service's alone; the operator's default
    fills in the others, on GPUs with host memory for KV blocks on top. Devices are requested as they are limited, as
    Kubernetes demands.
    """
    given = given or ResourceRequirements()
    offload = engine.kv_offload if engine is not None else None
    fallback = _default_resources(accelerator, settings, offload.host if offload is not None else None)
    own = given.requests.keys() | given.limits.keys()
    requests = {**_without(fallback.requests, own), **given.requests}
    limits = {**_without(fallback.limits, own), **given.limits}
    devices = _devices(accelerator)
    return ResourceRequirements(requests={**requests, **devices}, limits={**limits, **devices})


def without_devices(resources: ResourceRequirements) -> ResourceRequirements:
    """CPU and memory alone: what an init container may take without asking for more than its pod has anyway."""
    plain = {"cpu", "memory"}
    return ResourceRequirements(
        requests={name: amount for name, amount in resources.requests.items() if name in plain},
        limits={name: amount for name, amount in resources.limits.items() if name in plain},
    )


def times(quantity: int | str, factor: int) -> int | str:
    """Multiply a quantity, keeping its unit: 3 times `16Gi` is `48Gi`."""
    if isinstance(quantity, int):
        return quantity * factor
    match = _QUANTITY.fullmatch(quantity)
    assert match is not None, f"{quantity!r} is no quantity"
    number = Decimal(match[1]) * factor
    return f"{number.normalize():f}{match[2]}"


def _default_resources(
    accelerator: AcceleratorSpec | None, settings: Settings, host_kv: Quantity | None
) -> ResourceRequirements:
    if accelerator is None or accelerator.resource() is None:
        return settings.cpu_resources  # what host memory takes there is planned out of the limit
    each = settings.gpu_resources
    return ResourceRequirements(
        requests=_with_memory(
            {name: times(amount, accelerator.count) for name, amount in each.requests.items()}, host_kv
        ),
        limits=_with_memory({name: times(amount, accelerator.count) for name, amount in each.limits.items()}, host_kv),
    )


def _with_memory(amounts: Amounts, more: Quantity | None) -> Amounts:
    present = parse_quantity(amounts.get("memory", ""))
    if more is None or present is None:
        return amounts
    return {**amounts, "memory": str(math.ceil(present) + more.bytes)}


def _devices(accelerator: AcceleratorSpec | None) -> Amounts:
    resource = accelerator.resource() if accelerator else None
    return {resource: accelerator.count} if accelerator and resource else {}


def _without(amounts: Amounts, names: set[str]) -> Amounts:
    return {name: amount for name, amount in amounts.items() if name not in names}
