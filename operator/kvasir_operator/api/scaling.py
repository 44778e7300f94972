"""`spec.scaling`: how many replicas, and when that changes."""

from pydantic import Field

from kvasir_operator.api.base import ApiModel, Duration

MAX_REPLICAS = 1000
"""Bound on replicas, high enough to be no limit and low enough to stop a slip of the finger."""


class ScalingTargets(ApiModel):
    """Load that one replica should carry; the signal that asks for most replicas decides."""

    kv_cache_utilization: float | None = Field(
        default=0.75,
        gt=0,
        le=1,
        description="Share of a replica's KV cache, and of the time that it computes prompts, that load may take. "
        "null: neither is looked at.",
    )
    queued_requests_per_replica: float | None = Field(
        default=4, gt=0, le=100_000, description="Requests that may wait at a replica."
    )
    ttft_p95: Duration | None = Field(
        default=None,
        alias="ttftP95",
        description="Time to the first token that 95 of 100 requests should keep, such as 2s. Unset: not looked at.",
    )


class ScaleUpSpec(ApiModel):
    """How fast replicas may be added."""

    stabilization: Duration = Field(
        default=Duration("0s"),
        description="How long demand must have been higher before replicas are added.",
    )
    max_rate_per_minute: int = Field(default=4, ge=1, le=MAX_REPLICAS, description="Most replicas added in a minute.")


class ScaleDownSpec(ApiModel):
    """How fast replicas may be taken away."""

    stabilization: Duration = Field(
        default=Duration("5m"),
        description="How long demand must have been lower before replicas are taken away.",
    )
    max_rate_per_minute: int = Field(
        default=1, ge=1, le=MAX_REPLICAS, description="Most replicas taken away in a minute."
    )


class ScaleToZeroSpec(ApiModel):
    """When nobody asks, no replica runs; the router holds the first requests until one is back."""

    idle_after: Duration = Field(
        default=Duration("15m"),
        description="How long after the last finished request the last replica goes. Not acted on yet.",
    )
    max_held_requests: int = Field(
        default=256,
        ge=1,
        le=100_000,
        description="Requests that the router holds while a replica starts; more get 429. Not acted on yet.",
    )
    hold_timeout: Duration = Field(
        default=Duration("3m"), description="How long the router holds a request. Not acted on yet."
    )


class ScalingSpec(ApiModel):
    """Automatic scaling between bounds. Absent: `replicas` decides alone."""

    min_replicas: int = Field(
        default=1,
        ge=0,
        le=MAX_REPLICAS,
        description="Least replicas while the service is used; 0 needs scaleToZero. `replicas` is raised to it.",
    )
    max_replicas: int = Field(
        ge=1, le=MAX_REPLICAS, description="Most replicas, whatever the demand. `replicas` is lowered to it."
    )
    targets: ScalingTargets = Field(
        default=ScalingTargets(),
        description="Load that one replica should carry; the signal that asks for most replicas decides.",
    )
    scale_up: ScaleUpSpec = Field(default=ScaleUpSpec(), description="How fast replicas may be added.")
    scale_down: ScaleDownSpec = Field(default=ScaleDownSpec(), description="How fast replicas may be taken away.")
    tolerance: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Share by which demand may leave the target before anything changes.",
    )
    scale_to_zero: ScaleToZeroSpec | None = Field(
        default=None,
        description="Let the last replica go when nobody asks; needs the router. Absent: never. Not acted on yet.",
    )
