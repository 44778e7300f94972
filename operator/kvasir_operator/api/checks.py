"""What the fields of a spec must not say against each other. One small check a rule; `cel` has those CEL can express.

Every check yields the path of the field that should be changed, the bound, and the value it has.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from kvasir_operator.api.base import NAME_MAX_LENGTH, NAME_PATTERN, Duration
from kvasir_operator.api.field_errors import FieldError, show
from kvasir_operator.api.hardware import AcceleratorSpec
from kvasir_operator.api.kubernetes import EnvVar, parse_quantity
from kvasir_operator.api.model import AdapterSource, LoraSettings, Source
from kvasir_operator.api.reserved import RESERVED_SETTINGS, set_elsewhere
from kvasir_operator.api.v1alpha1 import InferenceService, InferenceServiceSpec
from kvasir_runtime.contract.engine_args import ENV_PREFIX, EngineArgs

LONGEST_DRAIN: Final = 24 * 3600
"""Seconds; nodes are not kept from going for longer."""

DEFAULT_MAX_LORAS: Final[int] = EngineArgs.model_fields["max_loras"].default

Errors = Iterator[FieldError]


def check_name(service: InferenceService) -> Errors:
    name = service.metadata.name
    if not re.fullmatch(NAME_PATTERN, name) or len(name) > NAME_MAX_LENGTH:
        problem = f"must be at most {NAME_MAX_LENGTH} lower-case letters, digits and dashes, beginning with a letter"
        yield FieldError("metadata.name", f"{problem}, got {show(name)}")


def check_sources(service: InferenceService) -> Errors:
    spec = service.spec
    yield from _check_source(spec.model.source, "spec.model.source")
    for index, adapter in enumerate(spec.adapters):
        yield from _check_source(adapter.source, f"spec.adapters[{index}].source")


def _check_source(source: Source, path: str) -> Errors:
    scheme, _, rest = source.uri.partition("://")
    if ".." in rest.split("/"):
        yield FieldError(f"{path}.uri", f"must not contain '..', got {show(source.uri)}")
    if scheme in ("pvc", "file"):
        digest = None if isinstance(source, AdapterSource) else source.sha256
        for name, value in (("secretName", source.secret_name), ("sha256", digest)):
            if value is not None:
                yield FieldError(f"{path}.{name}", f"must be unset with {scheme}://, got {show(value)}")


def check_kv_memory(service: InferenceService) -> Errors:
    engine = service.spec.engine
    if engine.kv_cache_memory is not None and engine.gpu_memory_utilization is not None:
        problem = f"must be unset when kvCacheMemory is set ({engine.kv_cache_memory})"
        yield FieldError("spec.engine.gpuMemoryUtilization", f"{problem}, got {engine.gpu_memory_utilization:g}")


def check_kv_offload(service: InferenceService) -> Errors:
    engine = service.spec.engine
    offload = engine.kv_offload
    if offload is not None and offload.disk is not None and offload.host is None:
        problem = f"must be unset without kvOffload.host, got size {offload.disk.size}"
        yield FieldError("spec.engine.kvOffload.disk", problem)
    if offload is not None and offload.host is not None and not engine.prefix_caching.enabled:
        problem = "must be unset when prefixCaching.enabled is false"
        yield FieldError("spec.engine.kvOffload.host", f"{problem}, got {offload.host}")


def check_env(service: InferenceService) -> Errors:
    env = service.spec.engine.env
    yield from _check_unique((each.name for each in env), "spec.engine.env", "name")
    for index, variable in enumerate(env):
        yield from _check_variable(variable, f"spec.engine.env[{index}]")


def _check_variable(variable: EnvVar, path: str) -> Errors:
    if variable.value is not None and variable.value_from is not None:
        yield FieldError(f"{path}.valueFrom", f"must be unset when value is set, got value {show(variable.value)}")
    if variable.value_from is not None and len(variable.value_from.to_manifest()) != 1:
        yield FieldError(
            f"{path}.valueFrom", f"must name exactly one source, got {len(variable.value_from.to_manifest())}"
        )
    setting = variable.name.removeprefix(ENV_PREFIX).lower()
    if variable.name.startswith(ENV_PREFIX) and setting in RESERVED_SETTINGS:
        yield FieldError(f"{path}.name", f"{set_elsewhere(setting)}, got {show(variable.name)}")


def check_extra_args(service: InferenceService) -> Errors:
    for index, argument in enumerate(service.spec.engine.extra_args):
        flag = argument.partition("=")[0]
        setting = flag.removeprefix("--").removeprefix("no-").replace("-", "_")
        if flag.startswith("--") and setting in RESERVED_SETTINGS:
            yield FieldError(f"spec.engine.extraArgs[{index}]", f"{set_elsewhere(setting)}, got {show(argument)}")


def check_accelerator(service: InferenceService) -> Errors:
    accelerator = service.spec.accelerator
    if accelerator is None:
        return
    if accelerator.vendor == "cpu":
        yield from _check_cpu(accelerator)
        return
    if accelerator.mig is not None:
        yield from _check_mig(accelerator)


def _check_cpu(accelerator: AcceleratorSpec) -> Errors:
    if accelerator.count != 1:
        yield FieldError("spec.accelerator.count", f"must be 1 or unset with vendor cpu, got {accelerator.count}")
    unwanted = {
        "products": accelerator.products,
        "minMemory": accelerator.min_memory,
        "mig": accelerator.mig,
        "resourceName": accelerator.resource_name,
    }
    for name, value in unwanted.items():
        if value:
            yield FieldError(f"spec.accelerator.{name}", f"must be unset with vendor cpu, got {show(value)}")


def _check_mig(accelerator: AcceleratorSpec) -> Errors:
    if accelerator.count != 1:
        problem = f"must be 1 with mig ({accelerator.mig}), whose slices cannot share a layer"
        yield FieldError("spec.accelerator.count", f"{problem}, got {accelerator.count}")
    for name, value in (("minMemory", accelerator.min_memory), ("resourceName", accelerator.resource_name)):
        if value is not None:
            yield FieldError(
                f"spec.accelerator.{name}", f"must be unset when mig is set ({accelerator.mig}), got {show(value)}"
            )


def check_parallelism(service: InferenceService) -> Errors:
    """Every device of a replica has its part: tensor x pipeline = count."""
    parallelism, accelerator = service.spec.parallelism, service.spec.accelerator
    count = accelerator.count if accelerator is not None and accelerator.resource() else 1
    if parallelism.tensor is None:
        if count % parallelism.pipeline:
            problem = f"must divide accelerator.count ({count})"
            yield FieldError("spec.parallelism.pipeline", f"{problem}, got {parallelism.pipeline}")
    elif parallelism.tensor * parallelism.pipeline != count:
        problem = f"times pipeline ({parallelism.pipeline}) must be accelerator.count ({count})"
        yield FieldError("spec.parallelism.tensor", f"{problem}, got {parallelism.tensor}")


def check_resources(service: InferenceService) -> Errors:
    resources = service.spec.resources
    if resources is None:
        return
    for kind, amounts in (("requests", resources.requests), ("limits", resources.limits)):
        for name, amount in amounts.items():
            yield from _check_amount(f"spec.resources.{kind}.{name}", name, amount)
    for name in resources.requests.keys() & resources.limits.keys():
        request, limit = parse_quantity(resources.requests[name]), parse_quantity(resources.limits[name])
        if request is not None and limit is not None and request > limit:
            problem = f"must be at most the limit ({resources.limits[name]})"
            yield FieldError(f"spec.resources.requests.{name}", f"{problem}, got {resources.requests[name]}")


def _check_amount(path: str, name: str, amount: int | str) -> Errors:
    if parse_quantity(amount) is None:
        yield FieldError(path, f"must be a quantity such as 2, 500m or 8Gi, got {show(amount)}")
    if name.startswith("nvidia.com/"):
        yield FieldError(path, f"must be asked for by spec.accelerator, got {show(amount)}")


def check_scaling_bounds(service: InferenceService) -> Errors:
    scaling = service.spec.scaling
    if scaling is None:
        return
    if scaling.max_replicas < scaling.min_replicas:
        problem = f"must be at least minReplicas ({scaling.min_replicas})"
        yield FieldError("spec.scaling.maxReplicas", f"{problem}, got {scaling.max_replicas}")
    if scaling.min_replicas == 0 and scaling.scale_to_zero is None:
        yield FieldError("spec.scaling.minReplicas", "must be at least 1 unless scaleToZero is set, got 0")


def check_scale_to_zero(service: InferenceService) -> Errors:
    """Somebody must hold the first request while a replica starts."""
    scaling, router = service.spec.scaling, service.spec.router
    if scaling is not None and scaling.scale_to_zero is not None and not router.enabled:
        yield FieldError("spec.router.enabled", "must be true when spec.scaling.scaleToZero is set, got false")


def check_adapters(service: InferenceService) -> Errors:
    adapters = [adapter.name for adapter in service.spec.adapters]
    yield from _check_unique(adapters, "spec.adapters", "name")
    for index, name in enumerate(adapters):
        if name == service.served_name:
            problem = "must differ from the name under which the model itself is served"
            yield FieldError(f"spec.adapters[{index}].name", f"{problem}, got {show(name)}")
    yield from _check_pinned(service.spec)


def _check_pinned(spec: InferenceServiceSpec) -> Errors:
    """One slot of a batch must stay for those that are not pinned."""
    lora = spec.engine.lora or LoraSettings()
    slots = lora.max_loras or DEFAULT_MAX_LORAS
    pinned = [index for index, adapter in enumerate(spec.adapters) if adapter.pinned]
    most = slots if len(pinned) == len(spec.adapters) else slots - 1
    if len(pinned) > most:
        problem = f"must be false for all but {most} of the adapters, with spec.engine.lora.maxLoras {slots}"
        yield FieldError(f"spec.adapters[{pinned[most]}].pinned", f"{problem}, got true")
    if lora.max_cpu_loras is not None and lora.max_cpu_loras < slots:
        yield FieldError(
            "spec.engine.lora.maxCpuLoras", f"must be at least maxLoras ({slots}), got {lora.max_cpu_loras}"
        )


def check_warmup(service: InferenceService) -> Errors:
    """What is computed beforehand must be kept."""
    if service.spec.warmup is not None and not service.spec.engine.prefix_caching.enabled:
        yield FieldError("spec.warmup", "must be unset when engine.prefixCaching.enabled is false")


def _check_unique(values: Iterable[str], path: str, field: str) -> Errors:
    seen: dict[str, int] = {}
    for index, value in enumerate(values):
        if value in seen:
            problem = f"must differ from that of {path}[{seen[value]}]"
            yield FieldError(f"{path}[{index}].{field}", f"{problem}, got {show(value)}")
        seen.setdefault(value, index)


def check_rollout(service: InferenceService) -> Errors:
    rollout = service.spec.rollout
    if rollout.strategy == "Surge" and rollout.max_surge == 0:
        yield FieldError("spec.rollout.maxSurge", "must be at least 1 with strategy Surge, got 0")
    elif rollout.strategy == "Auto" and rollout.max_surge == rollout.max_unavailable == 0:
        yield FieldError("spec.rollout.maxUnavailable", "must be at least 1 when maxSurge is 0, got 0")
    steps = [step.traffic for step in rollout.canary.steps] if rollout.canary else []
    for index, (before, after) in enumerate(itertools.pairwise(steps), start=1):
        if after <= before:
            path = f"spec.rollout.canary.steps[{index}].traffic"
            yield FieldError(path, f"must be greater than that of the step before ({before}), got {after}")


def check_durations(service: InferenceService) -> Errors:
    """Waits that make no sense without length, and one that must end."""
    for path, value in _positive_durations(service.spec):
        if value is not None and value.seconds <= 0:
            yield FieldError(path, f"must be longer than 0s, got {value}")
    drain = service.spec.drain.timeout
    if drain.seconds > LONGEST_DRAIN:
        yield FieldError("spec.drain.timeout", f"must be at most 24h, got {drain}")


def _positive_durations(spec: InferenceServiceSpec) -> Iterator[tuple[str, Duration | None]]:
    yield "spec.rollout.progressDeadline", spec.rollout.progress_deadline
    if spec.warmup is not None:
        yield "spec.warmup.timeout", spec.warmup.timeout
    for index, adapter in enumerate(spec.adapters):
        yield f"spec.adapters[{index}].refreshInterval", adapter.refresh_interval
    if spec.scaling is not None:
        yield "spec.scaling.targets.ttftP95", spec.scaling.targets.ttft_p95
        zero = spec.scaling.scale_to_zero
        yield "spec.scaling.scaleToZero.idleAfter", zero.idle_after if zero else None
        yield "spec.scaling.scaleToZero.holdTimeout", zero.hold_timeout if zero else None


ALL: Final[Sequence[Callable[[InferenceService], Iterable[FieldError]]]] = (
    check_name,
    check_sources,
    check_kv_memory,
    check_kv_offload,
    check_env,
    check_extra_args,
    check_accelerator,
    check_parallelism,
    check_resources,
    check_scaling_bounds,
    check_scale_to_zero,
    check_adapters,
    check_warmup,
    check_rollout,
    check_durations,
)
"""Every check, in the order of the fields."""
