"""`spec.rollout`, `spec.drain` and `spec.router`: how replicas are changed, emptied and reached."""

from typing import Literal

from pydantic import Field

from kvasir_operator.api.base import ApiModel, DnsName, Duration


class CanaryStep(ApiModel):
    """One step of a canary."""

    traffic: int = Field(
        ge=1,
        le=100,
        description="Share of the requests that the new revision gets, in percent: by its share of the replicas, at "
        "least one.",
    )
    pause: Duration = Field(description="How long the step lasts, once its replicas serve.")


class CanarySpec(ApiModel):
    """Traffic moves to a new revision step by step."""

    steps: list[CanaryStep] = Field(min_length=1, max_length=20, description="The steps, with rising traffic.")


class AutoRollbackSpec(ApiModel):
    """When a new revision is given up by itself."""

    enabled: bool = Field(
        default=True,
        description="Whether a revision that crashes, makes no progress or answers golden prompts otherwise is rolled "
        "back by itself. One that has served on all replicas is not.",
    )
    ttft_p95_ratio: float | None = Field(
        default=None,
        gt=1,
        alias="ttftP95Ratio",
        description="Times the old revision's p95 time to first token that is still good, while both serve: in a step "
        "of a canary, after its first minute. Unset: not compared.",
    )
    error_rate: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Share of failed requests that is still good, such as 0.02: of those of the last minute, if there "
        "are 20, and the old revision fails less. The trial then lasts a minute longer. Unset: not looked at.",
    )
    golden_prompts: list[str] = Field(
        default=[],
        max_length=64,
        description="Prompts whose log-probabilities the new revision must reproduce before it takes traffic.",
    )
    golden_tolerance: float = Field(
        default=0.1,
        ge=0,
        description="Most that the log-probabilities of golden prompts may differ between the revisions, in nats a "
        "token, as the mean over a prompt.",
    )


class RolloutSpec(ApiModel):
    """How a change of model, image, engine or resources reaches the replicas."""

    strategy: Literal["Auto", "Surge", "InPlace"] = Field(
        default="Auto",
        description="Surge: a new replica serves before an old one goes. InPlace: an old one is drained and replaced. "
        "Auto: surge; where no node has room for one more replica, in place.",
    )
    max_surge: int = Field(default=1, ge=0, le=100, description="Replicas above `replicas` during a rollout.")
    max_unavailable: int = Field(
        default=0, ge=0, le=100, description="Replicas below `replicas` that may be missing during a rollout."
    )
    progress_deadline: Duration = Field(
        default=Duration("20m"),
        description="How long a rollout may go without progress before it counts as failed.",
    )
    revision_history_limit: int = Field(
        default=5, ge=0, le=100, description="Old revisions kept to roll back to, beside those in use."
    )
    paused: bool = Field(
        default=False,
        description="Whether the rollout stands still: replicas stay of the revisions that they are of.",
    )
    canary: CanarySpec | None = Field(
        default=None, description="Move traffic to a new revision step by step. Absent: all at once."
    )
    auto_rollback: AutoRollbackSpec = Field(
        default=AutoRollbackSpec(), description="When a new revision is given up by itself."
    )


class DrainSpec(ApiModel):
    """How a replica that goes treats its running requests."""

    timeout: Duration = Field(
        default=Duration("5m"),
        description="How long running requests may finish before they are cut. Also the pod's grace period.",
    )


class RouterSpec(ApiModel):
    """The entry point in front of the replicas."""

    enabled: bool = Field(
        default=True,
        description="Whether requests pass through the router, not straight to the replicas. Not acted on yet.",
    )
    policy: Literal["PrefixAffinity", "LeastLoad", "RoundRobin"] = Field(
        default="PrefixAffinity",
        description="PrefixAffinity: to the replica that holds the prompt's prefix, within bounded load. LeastLoad: to "
        "the one with most free KV blocks. RoundRobin: in turn. Not acted on yet.",
    )
    replicas: int = Field(default=1, ge=1, le=100, description="Pods of the router. Not acted on yet.")
    api_keys_secret: DnsName | None = Field(
        default=None,
        description="Secret of this namespace whose key `keys` holds the API keys of which requests must present one, "
        "one a line. Unset: none needed.",
    )
