"""Conditions of an InferenceService: their types, their reasons, and how one is set.

`lastTransitionTime` changes only with the status, as in Kubernetes' own API conventions. Time is an argument.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field, WithJsonSchema

from kvasir_operator.api.base import ApiModel, Time

REASON_PATTERN: Final = r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"
"""What the schema demands of types and reasons is no list: it must admit those of a newer operator."""

ConditionStatus = Literal["True", "False", "Unknown"]


class ConditionType(StrEnum):
    """The closed set of conditions."""

    READY = "Ready"
    MODEL_AVAILABLE = "ModelAvailable"
    CAPACITY_FITS = "CapacityFits"
    ACCELERATOR_AVAILABLE = "AcceleratorAvailable"
    PROGRESSING = "Progressing"
    ADAPTERS_READY = "AdaptersReady"
    SCALING_ACTIVE = "ScalingActive"
    DEGRADED = "Degraded"


class Reason(StrEnum):
    """Why a condition has its status; the message says the rest."""

    # Ready
    REPLICAS_READY = "ReplicasReady"
    SOME_REPLICAS_READY = "SomeReplicasReady"
    NO_REPLICAS_READY = "NoReplicasReady"
    SCALED_TO_ZERO = "ScaledToZero"
    INVALID_SPEC = "InvalidSpec"
    # Progressing
    CREATING_REPLICAS = "CreatingReplicas"
    REMOVING_REPLICAS = "RemovingReplicas"
    LOADING_MODEL = "LoadingModel"
    WARMING = "Warming"
    DRAINING = "Draining"
    ROLLING_OUT = "RollingOut"
    ROLLOUT_PAUSED = "RolloutPaused"
    CANARY = "Canary"
    ROLLING_BACK = "RollingBack"
    CONVERGED = "Converged"
    PROGRESS_DEADLINE_EXCEEDED = "ProgressDeadlineExceeded"
    ROLLED_BACK = "RolledBack"
    # ModelAvailable
    MODEL_LOADED = "ModelLoaded"
    FETCHING_MODEL = "FetchingModel"
    MODEL_NOT_FOUND = "ModelNotFound"
    MODEL_INVALID = "ModelInvalid"
    MODEL_UNSUPPORTED = "ModelUnsupported"
    WEIGHTS_CORRUPT = "WeightsCorrupt"
    SOURCE_UNREACHABLE = "SourceUnreachable"
    SOURCE_FORBIDDEN = "SourceForbidden"
    SOURCE_NOT_ALLOWED = "SourceNotAllowed"
    CLAIM_NOT_FOUND = "ClaimNotFound"
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105 - a reason, not a secret
    # CapacityFits
    FITS = "Fits"
    OUT_OF_MEMORY_WEIGHTS = "OutOfMemoryWeights"
    OUT_OF_MEMORY_KV_CACHE = "OutOfMemoryKVCache"
    OUT_OF_MEMORY_HOST = "OutOfMemoryHost"
    INSPECTING = "Inspecting"
    INSPECTION_FAILED = "InspectionFailed"
    # AcceleratorAvailable
    NOT_NEEDED = "NotNeeded"
    ALLOCATED = "Allocated"
    WAITING_FOR_GPU = "WaitingForGPU"
    NO_MATCHING_NODE = "NoMatchingNode"
    ACCELERATOR_ERROR = "AcceleratorError"
    # AdaptersReady
    ADAPTERS_LOADED = "AdaptersLoaded"
    ADAPTERS_LOADING = "AdaptersLoading"
    ADAPTER_INVALID = "AdapterInvalid"
    NO_ADAPTERS = "NoAdapters"
    # ScalingActive
    SCALING_OFF = "ScalingOff"
    SCALING_BOUNDED = "ScalingBounded"
    SCALING_ON_LOAD = "ScalingOnLoad"
    OWNED_BY_OTHER = "OwnedByOther"
    METRICS_UNKNOWN = "MetricsUnknown"
    # Degraded
    HEALTHY = "Healthy"
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    CONTAINER_CONFIG_INVALID = "ContainerConfigInvalid"
    VOLUME_FAILED = "VolumeFailed"
    CRASH_LOOP = "CrashLoop"
    OUT_OF_MEMORY_KILLED = "OOMKilled"
    DISK_FULL = "DiskFull"
    PROBE_FAILED = "ProbeFailed"
    SANDBOX_FAILED = "SandboxFailed"
    INVALID_ARGUMENTS = "InvalidArguments"
    PORT_IN_USE = "PortInUse"
    ENGINE_DIED = "EngineDied"
    INTERNAL_ERROR = "InternalError"
    NODE_LOST = "NodeLost"
    EVICTED = "Evicted"
    POD_REFUSED = "PodRefused"
    GOLDEN_PROMPTS_DIFFER = "GoldenPromptsDiffer"
    SLOWER_THAN_BEFORE = "SlowerThanBefore"
    MORE_ERRORS_THAN_BEFORE = "MoreErrorsThanBefore"
    # Any
    UNKNOWN = "Unknown"


class Condition(ApiModel):
    """One aspect of the service's state, as `metav1.Condition`."""

    type: Annotated[ConditionType, WithJsonSchema({"type": "string", "maxLength": 316})] = Field(
        description="Aspect that the condition speaks of."
    )
    status: ConditionStatus = Field(description="Whether it holds.")
    reason: Annotated[Reason, WithJsonSchema({"type": "string", "maxLength": 1024, "pattern": REASON_PATTERN})] = Field(
        description="Why, in one word that programs may rely on."
    )
    message: str = Field(default="", max_length=32_768, description="Why, in words that a person can act on.")
    last_transition_time: Time = Field(description="When the status last changed.")
    observed_generation: int | None = Field(
        default=None, ge=0, description="metadata.generation that the condition was computed for."
    )


def find_condition(conditions: Iterable[Condition], kind: ConditionType) -> Condition | None:
    """The condition of that type; None where it was never set."""
    return next((condition for condition in conditions if condition.type == kind), None)


def set_condition(
    conditions: Sequence[Condition],
    kind: ConditionType,
    status: ConditionStatus | bool,
    reason: Reason,
    message: str = "",
    *,
    now: datetime,
    observed_generation: int | None = None,
) -> list[Condition]:
    """Return `conditions` with that one set, in the order of `ConditionType`; the argument is not changed.

    The time of the last transition is `now` where the status changes, and stays where it does not.
    """
    status = status_of(status)
    before = find_condition(conditions, kind)
    since = before.last_transition_time if before is not None and before.status == status else now
    new = Condition(
        type=kind,
        status=status,
        reason=reason,
        message=message,
        last_transition_time=since,
        observed_generation=observed_generation,
    )
    order = list(ConditionType)
    others = [condition for condition in conditions if condition.type != kind]
    return sorted([*others, new], key=lambda condition: order.index(condition.type))


def drop_condition(conditions: Sequence[Condition], kind: ConditionType) -> list[Condition]:
    """Return `conditions` without that one."""
    return [condition for condition in conditions if condition.type != kind]


def status_of(value: ConditionStatus | bool) -> ConditionStatus:
    """Write a bool as Kubernetes does."""
    if isinstance(value, bool):
        return "True" if value else "False"
    return value
