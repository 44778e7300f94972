"""`InferenceService`, kvasir.dev/v1alpha1: the typed spec and status, and how an object becomes one."""

from collections.abc import Mapping
from typing import Any, Final, Literal, cast

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator

from kvasir_operator.api.base import ApiModel, DnsLabel, Duration, Quantity
from kvasir_operator.api.conditions import Condition, ConditionType, Reason
from kvasir_operator.api.hardware import AcceleratorSpec, GroupSpec, ParallelismSpec
from kvasir_operator.api.kubernetes import (
    Affinity,
    EnvVar,
    ObjectMeta,
    ResourceRequirements,
    Toleration,
    TopologySpreadConstraint,
)
from kvasir_operator.api.model import AdapterSpec, EngineSpec, KVOffload, ModelSpec, PrefixCaching, Source, WarmupSpec
from kvasir_operator.api.rollout import AutoRollbackSpec, CanarySpec, CanaryStep, DrainSpec, RolloutSpec, RouterSpec
from kvasir_operator.api.scaling import MAX_REPLICAS, ScaleToZeroSpec, ScalingSpec, ScalingTargets
from kvasir_operator.api.status import (
    AdapterStatus,
    CanaryStatus,
    CapacityStatus,
    InferenceServiceStatus,
    LastFailure,
    RevisionStatus,
    ScalingDecision,
    ScalingStatus,
    Summary,
    WarmupStatus,
)

__all__ = [
    "API_VERSION",
    "GROUP",
    "KIND",
    "MAX_REPLICAS",
    "PLURAL",
    "SHORT_NAME",
    "VERSION",
    "AcceleratorSpec",
    "AdapterSpec",
    "AdapterStatus",
    "Affinity",
    "AutoRollbackSpec",
    "CanarySpec",
    "CanaryStatus",
    "CanaryStep",
    "CapacityStatus",
    "Condition",
    "ConditionType",
    "DrainSpec",
    "Duration",
    "EngineSpec",
    "EnvVar",
    "InferenceService",
    "InferenceServiceSpec",
    "InferenceServiceStatus",
    "KVOffload",
    "LastFailure",
    "ModelSpec",
    "ObjectMeta",
    "ParallelismSpec",
    "PrefixCaching",
    "Quantity",
    "Reason",
    "ResourceRequirements",
    "RevisionStatus",
    "RolloutSpec",
    "RouterSpec",
    "ScaleToZeroSpec",
    "ScalingDecision",
    "ScalingSpec",
    "ScalingStatus",
    "ScalingTargets",
    "Source",
    "Summary",
    "Toleration",
    "TopologySpreadConstraint",
    "WarmupSpec",
    "WarmupStatus",
]

GROUP: Final = "kvasir.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "InferenceService"
PLURAL: Final = "inferenceservices"
SHORT_NAME: Final = "isvc"


class InferenceServiceSpec(ApiModel):
    """What should be served, on what, by how many replicas."""

    model: ModelSpec = Field(description="The model that is served.")
    engine: EngineSpec = Field(default=EngineSpec(), description="Settings of the engine.")
    accelerator: AcceleratorSpec | None = Field(
        default=None, description="Devices of one replica. Absent: the model runs on the processor."
    )
    parallelism: ParallelismSpec = Field(
        default=ParallelismSpec(), description="How one replica divides the model among its devices."
    )
    resources: ResourceRequirements | None = Field(
        default=None,
        description="CPU and memory of the runtime's container; what is unset comes from the operator's settings. "
        "Devices are asked for by `accelerator`.",
    )
    node_selector: dict[str, str] = Field(default={}, description="Labels that a node must have.")
    tolerations: list[Toleration] = Field(default=[], description="Taints that the pods accept.")
    affinity: Affinity | None = Field(
        default=None, description="Nodes and neighbours that the pods want or avoid, written as in a pod."
    )
    topology_spread_constraints: list[TopologySpreadConstraint] = Field(
        default=[], description="How evenly the pods are spread over zones, nodes and the like."
    )
    service_account_name: DnsLabel | None = Field(
        default=None,
        description="Service account of the pods, for image pull secrets; its token is not mounted. Unset: default.",
    )
    priority: int = Field(
        default=0,
        ge=-1_000_000,
        le=1_000_000,
        description="Services with a higher number get accelerators first: replicas above `scaling.minReplicas` of "
        "those with a lower one are drained for them. No PriorityClass.",
    )
    group: GroupSpec | None = Field(
        default=None,
        description="Services that this one starts with, all or none of them. Absent: it starts as soon as it can.",
    )
    replicas: int = Field(
        default=1,
        ge=0,
        le=MAX_REPLICAS,
        description="Replicas that should serve; what `kubectl scale`, an HPA or KEDA change.",
    )
    scaling: ScalingSpec | None = Field(
        default=None, description="Automatic scaling between bounds. Absent: `replicas` decides alone."
    )
    warmup: WarmupSpec | None = Field(
        default=None,
        description="What a new replica computes before it takes traffic. Absent: nothing.",
    )
    adapters: list[AdapterSpec] = Field(
        default=[],
        max_length=256,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        description="LoRA adapters served beside the model.",
    )
    rollout: RolloutSpec = Field(
        default=RolloutSpec(),
        description="How a change of model, image, engine or resources reaches the replicas.",
    )
    drain: DrainSpec = Field(default=DrainSpec(), description="How a replica that goes treats its running requests.")
    router: RouterSpec = Field(
        default=RouterSpec(), description="The entry point in front of the replicas, and who may pass."
    )


class InferenceService(ApiModel):
    """An LLM served by a set of equal replicas behind one OpenAI API."""

    api_version: Literal["kvasir.dev/v1alpha1"] = "kvasir.dev/v1alpha1"
    kind: Literal["InferenceService"] = "InferenceService"
    metadata: ObjectMeta
    spec: InferenceServiceSpec
    status: InferenceServiceStatus = Field(default=InferenceServiceStatus())

    @field_validator("status", mode="wrap")
    @classmethod
    def _unreadable_is_empty(cls, status: Any, read: ValidatorFunctionWrapHandler) -> InferenceServiceStatus:
        """Status is written by the operator alone and can be computed again: what cannot be read counts as absent."""
        try:
            return cast("InferenceServiceStatus", read(status))
        except ValidationError:
            return InferenceServiceStatus()

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> "InferenceService":
        """Read an object as the API server gives it; raises pydantic.ValidationError (see `validation.validate`)."""
        return cls.model_validate(manifest)

    @property
    def served_name(self) -> str:
        """Name that requests use for the model."""
        return self.spec.model.served_name or self.metadata.name
