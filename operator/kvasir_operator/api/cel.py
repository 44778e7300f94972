"""The cross-field checks that CEL can express, for API servers from 1.25 on, which then refuse a bad object at once.

Each says what a check in `checks` says. CEL cannot read quantities' values, durations with days or flags: those checks
are the webhook's and the operator's. Fields with a default are always there when a rule looks; others need has().
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: `path` is the object that `self` stands for ([]: each item), `message` what the user reads."""

    path: str
    expression: str
    message: str


RULES: Final = (
    Rule(
        "spec",
        "!has(self.scaling) || !has(self.scaling.scaleToZero) || !has(self.router) || self.router.enabled",
        "router.enabled must be true when scaling.scaleToZero is set",
    ),
    Rule(
        "spec",
        "!has(self.parallelism) || !has(self.accelerator) || self.accelerator.vendor == 'cpu' || "
        "(has(self.parallelism.tensor) ? "
        "self.parallelism.tensor * self.parallelism.pipeline == self.accelerator.count : "
        "self.accelerator.count % self.parallelism.pipeline == 0)",
        "parallelism.tensor times parallelism.pipeline must be accelerator.count",
    ),
    Rule(
        "spec",
        "!has(self.parallelism) || (has(self.accelerator) && self.accelerator.vendor != 'cpu') || "
        "(self.parallelism.pipeline == 1 && (!has(self.parallelism.tensor) || self.parallelism.tensor == 1))",
        "parallelism.tensor and parallelism.pipeline must be 1 without accelerators",
    ),
    Rule(
        "spec",
        "!has(self.adapters) || !has(self.model.servedName) || "
        "self.adapters.all(adapter, adapter.name != self.model.servedName)",
        "adapters must have names other than model.servedName",
    ),
    Rule(
        "spec.model.source",
        "!(has(self.secretName) || has(self.sha256)) || !self.uri.matches('^(pvc|file)://')",
        "secretName and sha256 must be unset with pvc:// and file://",
    ),
    Rule(
        "spec.model.source",
        "!self.uri.matches('/[.][.](/|$)')",
        "uri must not contain '..'",
    ),
    Rule(
        "spec.engine",
        "!(has(self.kvCacheMemory) && has(self.gpuMemoryUtilization))",
        "gpuMemoryUtilization must be unset when kvCacheMemory is set",
    ),
    Rule(
        "spec.engine",
        "!has(self.kvOffload) || !has(self.kvOffload.disk) || has(self.kvOffload.host)",
        "kvOffload.disk must be unset without kvOffload.host",
    ),
    Rule(
        "spec.engine",
        "!has(self.kvOffload) || !has(self.kvOffload.host) || !has(self.prefixCaching) || self.prefixCaching.enabled",
        "kvOffload.host must be unset when prefixCaching.enabled is false",
    ),
    Rule(
        "spec.engine.env[]",
        "!(has(self.value) && has(self.valueFrom))",
        "valueFrom must be unset when value is set",
    ),
    Rule(
        "spec.accelerator",
        "self.vendor != 'cpu' || (self.count == 1 && !(has(self.products) && size(self.products) > 0) && "
        "!has(self.minMemory) && !has(self.mig) && !has(self.resourceName))",
        "count, products, minMemory, mig and resourceName must be unset with vendor cpu",
    ),
    Rule(
        "spec.accelerator",
        "!has(self.mig) || (self.count == 1 && !has(self.minMemory) && !has(self.resourceName))",
        "count must be 1, minMemory and resourceName must be unset when mig is set",
    ),
    Rule(
        "spec.scaling",
        "self.maxReplicas >= self.minReplicas",
        "maxReplicas must be at least minReplicas",
    ),
    Rule(
        "spec.scaling",
        "self.minReplicas > 0 || has(self.scaleToZero)",
        "minReplicas must be at least 1 unless scaleToZero is set",
    ),
    Rule(
        "spec.rollout",
        "self.strategy != 'Surge' || self.maxSurge > 0",
        "maxSurge must be at least 1 with strategy Surge",
    ),
    Rule(
        "spec.rollout",
        "self.strategy != 'Auto' || self.maxSurge + self.maxUnavailable > 0",
        "maxUnavailable must be at least 1 when maxSurge is 0",
    ),
    Rule(
        "spec.rollout.canary",
        "self.steps.map(step, step.traffic).isSorted() && "
        "self.steps.all(step, self.steps.exists_one(other, other.traffic == step.traffic))",
        "the traffic of steps must rise from step to step",
    ),
)
"""Every rule, grouped by place in the order of the fields."""
