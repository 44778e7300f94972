"""The parts of Kubernetes' own API that a spec takes over into its pods.

Small types are spelled out, so that the API server checks them and `kubectl explain` shows them. The three parts of an
affinity are some hundred nested fields that the API server checks again when the pod is made: they stay objects with
whatever is in them.
"""

import re
from decimal import Decimal
from typing import Annotated, Any, Final, Literal

from pydantic import Field, WithJsonSchema

from kvasir_operator.api.base import ApiModel, Time

AMOUNT_PATTERN: Final = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE]-?[0-9]{1,2})?$"
_POWERS: Final = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY: Final = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60}

IntOrString = Annotated[int | str, WithJsonSchema({"x-kubernetes-int-or-string": True, "pattern": AMOUNT_PATTERN})]
"""A quantity such as `2`, `500m` or `8Gi`."""

FreeObject = Annotated[dict[str, Any], WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})]
"""An object whose fields are checked elsewhere."""


def parse_quantity(amount: int | str) -> Decimal | None:
    """The value of a quantity in its base unit (cores, bytes); None for what Kubernetes would not read.

    >>> parse_quantity("500m"), parse_quantity("2Ki"), parse_quantity("1e3"), parse_quantity("much")
    (Decimal('0.500'), Decimal('2048'), Decimal('1E+3'), None)
    """
    match = re.fullmatch(AMOUNT_PATTERN, str(amount))
    if match is None:
        return None
    number, unit = Decimal(match[1]), match[3] or ""
    if unit in _BINARY:
        return number * _BINARY[unit]
    return number.scaleb(_POWERS[unit] if unit in _POWERS else int(unit[1:] or "0"))


class ObjectMeta(ApiModel):
    """The metadata that the operator reads."""

    name: str
    namespace: str = "default"
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    labels: dict[str, str] = Field(default={})
    annotations: dict[str, str] = Field(default={})
    creation_timestamp: Time | None = None
    deletion_timestamp: Time | None = None


class ResourceRequirements(ApiModel):
    """CPU, memory and other resources of the runtime's container."""

    limits: dict[str, IntOrString] = Field(
        default={}, description="Most that the container may use, such as {cpu: 4, memory: 16Gi}."
    )
    requests: dict[str, IntOrString] = Field(
        default={}, description="What the scheduler sets aside for the container. Where unset, the limits are taken."
    )


class KeySelector(ApiModel):
    """One key of a Secret or ConfigMap in the same namespace."""

    name: str = Field(description="Name of the object.")
    key: str = Field(description="Key within the object.")
    optional: bool | None = Field(default=None, description="Whether the pod may start without it.")


class FieldSelector(ApiModel):
    """A field of the pod itself."""

    field_path: str = Field(description="Path of the field, such as status.podIP or metadata.name.")
    api_version: str | None = Field(default=None, description="API version that the path is written in.")


class ResourceFieldSelector(ApiModel):
    """A resource of one of the pod's containers."""

    resource: str = Field(description="Resource to take, such as limits.memory.")
    container_name: str | None = Field(default=None, description="Container to take it from.")
    divisor: IntOrString | None = Field(default=None, description="Unit to give the value in, such as 1Mi.")


class EnvVarSource(ApiModel):
    """Where a variable's value comes from: exactly one of these."""

    secret_key_ref: KeySelector | None = Field(default=None, description="A key of a Secret.")
    config_map_key_ref: KeySelector | None = Field(default=None, description="A key of a ConfigMap.")
    field_ref: FieldSelector | None = Field(default=None, description="A field of the pod.")
    resource_field_ref: ResourceFieldSelector | None = Field(default=None, description="A resource of a container.")


class EnvVar(ApiModel):
    """One environment variable."""

    name: str = Field(min_length=1, description="Name of the variable.")
    value: str | None = Field(default=None, description="Its value; $(OTHER) is replaced by that variable's value.")
    value_from: EnvVarSource | None = Field(default=None, description="Where to take the value from instead.")


class Toleration(ApiModel):
    """A taint that the pods accept."""

    key: str | None = Field(default=None, description="Key of the taint. Unset, with operator Exists: every taint.")
    operator: Literal["Exists", "Equal"] | None = Field(default=None, description="How key and value are compared.")
    value: str | None = Field(default=None, description="Value of the taint, with operator Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Effect of the taint. Unset: every effect."
    )
    toleration_seconds: int | None = Field(
        default=None, description="How long a NoExecute taint is tolerated, in seconds. Unset: for ever."
    )


class Affinity(ApiModel):
    """Nodes and neighbours that the pods want or avoid."""

    node_affinity: FreeObject | None = Field(
        default=None, description="Nodes, by their labels: `kubectl explain pod.spec.affinity.nodeAffinity`."
    )
    pod_affinity: FreeObject | None = Field(
        default=None, description="Pods to be near to: `kubectl explain pod.spec.affinity.podAffinity`."
    )
    pod_anti_affinity: FreeObject | None = Field(
        default=None, description="Pods to be away from: `kubectl explain pod.spec.affinity.podAntiAffinity`."
    )


class LabelSelectorRequirement(ApiModel):
    """One condition on a label."""

    key: str = Field(description="Key of the label.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"] = Field(description="How the values are compared.")
    values: list[str] | None = Field(default=None, description="Values for In and NotIn.")


class LabelSelector(ApiModel):
    """Conditions on labels that must all hold."""

    match_labels: dict[str, str] | None = Field(default=None, description="Labels and their wanted values.")
    match_expressions: list[LabelSelectorRequirement] | None = Field(default=None, description="Further conditions.")


class TopologySpreadConstraint(ApiModel):
    """How evenly the pods are spread over zones, nodes and the like."""

    max_skew: int = Field(ge=1, description="How many pods more one place may have than another.")
    topology_key: str = Field(
        description="Node label that tells the places apart, such as topology.kubernetes.io/zone."
    )
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"] = Field(
        description="Whether a pod waits when the spread cannot be kept."
    )
    label_selector: LabelSelector | None = Field(
        default=None, description="Pods that are counted. Unset: the pods of this service."
    )
    min_domains: int | None = Field(
        default=None, ge=1, description="Least number of places (Kubernetes 1.24 and newer)."
    )
    node_affinity_policy: Literal["Honor", "Ignore"] | None = Field(
        default=None, description="Whether only nodes that node affinity admits count (Kubernetes 1.25 and newer)."
    )
    node_taints_policy: Literal["Honor", "Ignore"] | None = Field(
        default=None, description="Whether only nodes whose taints are tolerated count (Kubernetes 1.25 and newer)."
    )
    match_label_keys: list[str] | None = Field(
        default=None, description="Labels whose values on the new pod narrow the selector (Kubernetes 1.25 and newer)."
    )
