"""`status`: what the operator last saw. Everything in it can be computed again from the cluster."""

from typing import Any, Literal

from pydantic import Field, field_validator

from kvasir_operator.api.base import ApiModel, Time
from kvasir_operator.api.conditions import Condition, ConditionType, Reason
from kvasir_operator.api.kubernetes import FreeObject
from kvasir_runtime.contract.model_report import ModelReport


class Summary(ApiModel):
    """The columns of `kubectl get isvc`, as text for people."""

    model: str = Field(default="", description="Last part of the model's address.")
    replicas: str = Field(default="", description="Ready and desired replicas, such as 2/3.")
    kv_cache: str = Field(default="", description="Mean use of the replicas' KV caches, such as 37%; empty: unknown.")


class RevisionStatus(ApiModel):
    """One version of the pods' template."""

    name: str = Field(description="Name of the revision; its pods carry it as a label.")
    number: int = Field(default=0, ge=0, description="Rises with each new revision.")
    created_at: Time | None = Field(default=None, description="When the revision was first seen.")
    replicas: int = Field(default=0, ge=0, description="Pods of the revision.")
    ready_replicas: int = Field(default=0, ge=0, description="Pods of the revision that serve.")
    message: str = Field(default="", description="What became of the revision, for people.")


class CanaryStatus(ApiModel):
    """How the requests are to be divided while a new revision is tried: for routers, which may weigh by it."""

    revision: str = Field(description="The new revision; its pods carry it as a label.")
    traffic: int = Field(ge=0, le=100, description="Share of the requests that it is to get, in percent.")
    step: int = Field(ge=1, description="The present step, from 1 on.")
    steps: int = Field(ge=1, description="How many steps there are.")
    since: Time | None = Field(default=None, description="When the step's replicas all served. Unset: not yet.")


class CapacityStatus(ApiModel):
    """What one replica can hold."""

    weights: int | None = Field(default=None, ge=0, description="Bytes that the weights take.")
    kv_bytes_per_token: int | None = Field(
        default=None, ge=0, description="Bytes that one token takes in the KV cache."
    )
    kv_tokens: int | None = Field(default=None, ge=0, description="Tokens that fit into the KV cache.")
    max_concurrent_sequences: int | None = Field(
        default=None, ge=0, description="Sequences of the full model length that fit at the same time."
    )
    source: Literal["planned", "measured"] | None = Field(
        default=None, description="planned: computed beforehand; measured: reported by a replica."
    )


class InspectionStatus(ApiModel):
    """What was found out about the model before replicas were made."""

    source: str = Field(description="Digest of the address that was looked at, and of who may read it.")
    time: Time = Field(description="When it was looked at.")
    model: FreeObject = Field(
        default={}, description="The numbers of its config.json on which memory depends; empty: they are not known."
    )
    message: str = Field(default="", description="Why nothing was found out, for people.")

    @property
    def report(self) -> ModelReport | None:
        """The numbers; None where they are not known."""
        return ModelReport.from_data(self.model) if self.model else None


class AdapterStatus(ApiModel):
    """One adapter over all replicas."""

    name: str = Field(description="Name of the adapter.")
    digest: str = Field(default="", description="Digest of the content that most replicas serve.")
    ready_replicas: int = Field(default=0, ge=0, description="Replicas that serve it, in whichever version.")
    updated_replicas: int = Field(
        default=0, ge=0, description="Replicas that serve what the source held when it was last looked at."
    )
    replicas: int = Field(default=0, ge=0, description="Replicas that are to serve it.")
    cause: str = Field(default="", description="Why it is not served everywhere, in one word; empty: it is.")
    message: str = Field(default="", description="Why it is not loaded everywhere, for people.")


class WarmupStatus(ApiModel):
    """The last warmup of a replica."""

    pod: str = Field(default="", description="Name of the replica.")
    tokens: int | None = Field(default=None, ge=0, description="Tokens that were computed.")
    cached_tokens: int | None = Field(default=None, ge=0, description="Tokens that were there already.")
    last_duration: str | None = Field(default=None, description="How long it took, such as 12.5s.")
    message: str = Field(default="", description="Why it ended, and what was left out, for people.")


class ScalingDecision(ApiModel):
    """One change of the desired replicas, with what it was decided from."""

    time: Time = Field(description="When it was decided.")
    from_: int = Field(alias="from", ge=0, description="Desired replicas before.")
    to: int = Field(ge=0, description="Desired replicas after.")
    reason: str = Field(default="", description="Why, for people.")
    inputs: FreeObject = Field(default={}, description="Numbers that the decision was made from; it can be replayed.")


class ScalingStatus(ApiModel):
    """What automatic scaling decided."""

    replicas: int | None = Field(default=None, ge=0, description="Replicas as automatic scaling set them last.")
    owner: str = Field(
        default="", description="Who else sets `replicas`, so that automatic scaling does not; empty: nobody."
    )
    prompt_tokens_per_second: float | None = Field(
        default=None, ge=0, description="Prompt tokens that a replica computes in a second that it spends on prompts."
    )
    last_decision: ScalingDecision | None = Field(default=None, description="The latest decision.")
    history: list[ScalingDecision] = Field(default=[], max_length=20, description="The latest decisions, newest first.")


class LastFailure(ApiModel):
    """The latest failure of a pod."""

    time: Time = Field(description="When it was seen.")
    pod: str = Field(default="", description="Name of the pod; empty where none could be made.")
    cause: str = Field(description="What failed, in one word that programs may rely on.")
    message: str = Field(default="", description="What happened, for people.")
    remedy: str = Field(default="", description="What to change.")


class InferenceServiceStatus(ApiModel):
    """What the operator last saw of the service."""

    observed_generation: int | None = Field(
        default=None, ge=0, description="metadata.generation that this status was computed for."
    )
    url: str | None = Field(default=None, description="Address of the OpenAI API within the cluster.")
    selector: str | None = Field(default=None, description="Label selector of the pods, for the scale subresource.")
    replicas: int | None = Field(default=None, ge=0, description="Pods that exist and are not going.")
    ready_replicas: int | None = Field(default=None, ge=0, description="Pods that serve.")
    updated_replicas: int | None = Field(default=None, ge=0, description="Pods of the newest revision.")
    desired_replicas: int | None = Field(default=None, ge=0, description="Pods that should serve.")
    summary: Summary | None = Field(default=None, description="The columns of `kubectl get`, as text for people.")
    conditions: list[Condition] = Field(
        default=[],
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        description="Aspects of the service's state: Ready, ModelAvailable, CapacityFits, AcceleratorAvailable, "
        "Progressing, AdaptersReady, ScalingActive and Degraded.",
    )
    current_revision: str | None = Field(default=None, description="Revision that serves.")
    update_revision: str | None = Field(default=None, description="Revision that the spec asks for.")
    revisions: list[RevisionStatus] = Field(default=[], description="Revisions that have pods or are kept.")
    canary: CanaryStatus | None = Field(default=None, description="The trial of a new revision, while there is one.")
    capacity: CapacityStatus | None = Field(default=None, description="What one replica can hold.")
    inspection: InspectionStatus | None = Field(
        default=None, description="What was found out about the model before replicas were made."
    )
    adapters: list[AdapterStatus] = Field(default=[], description="The adapters over all replicas.")
    warmup: WarmupStatus | None = Field(default=None, description="The last warmup of a replica.")
    scaling: ScalingStatus | None = Field(default=None, description="What automatic scaling decided.")
    last_failure: LastFailure | None = Field(default=None, description="The latest failure of a pod.")

    @field_validator("conditions", mode="before")
    @classmethod
    def _only_known(cls, conditions: Any) -> Any:
        """Leave out what a newer operator wrote and this one cannot name."""
        if not isinstance(conditions, list):
            return conditions
        return [entry for entry in conditions if not isinstance(entry, dict) or _is_known(entry)]


def _is_known(condition: dict[str, Any]) -> bool:
    return condition.get("type") in set(ConditionType) and condition.get("reason") in set(Reason)
