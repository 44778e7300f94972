"""What a service asks of automatic scaling: `spec.scaling` in plain numbers. Seconds, shares of one, replicas."""

from typing import Self

from kvasir_operator.api.base import ApiModel
from kvasir_operator.api.scaling import ScalingSpec


class Policy(ApiModel):
    """Bounds, targets and paces. A target that is None is not looked at."""

    min_replicas: int
    max_replicas: int
    utilization: float | None = 0.75
    queued_requests: float | None = 4.0
    ttft_s: float | None = None
    up_window_s: float = 0.0
    up_per_minute: int = 4
    down_window_s: float = 300.0
    down_per_minute: int = 1
    tolerance: float = 0.1

    @classmethod
    def of(cls, spec: ScalingSpec) -> Self:
        """Read the spec. At least one replica stays: what wakes a service from zero is not here."""
        targets, up, down = spec.targets, spec.scale_up, spec.scale_down
        return cls(
            min_replicas=max(1, spec.min_replicas),
            max_replicas=max(1, spec.max_replicas),
            utilization=targets.kv_cache_utilization,
            queued_requests=targets.queued_requests_per_replica,
            ttft_s=targets.ttft_p95.seconds if targets.ttft_p95 is not None else None,
            up_window_s=up.stabilization.seconds,
            up_per_minute=up.max_rate_per_minute,
            down_window_s=down.stabilization.seconds,
            down_per_minute=down.max_rate_per_minute,
            tolerance=spec.tolerance,
        )

    def clamp(self, replicas: int) -> int:
        """That many replicas, within the bounds."""
        return max(self.min_replicas, min(replicas, self.max_replicas))
