"""The PodDisruptionBudget: how many replicas evictions must leave, such as those of `kubectl drain`."""

from typing import Any, Final

from kvasir_operator.api.v1alpha1 import ObjectMeta
from kvasir_operator.resources import names
from kvasir_operator.resources.owner import owned_metadata

BUDGET_GROUP: Final = "policy"


def build_budget(owner: ObjectMeta, min_available: int) -> dict[str, Any]:
    """The manifest, without `apiVersion`, which depends on the API server.

    A number and no percentage: the API server would have to find the wanted count for the latter, at whatever time.
    """
    return {
        "kind": "PodDisruptionBudget",
        "metadata": owned_metadata(owner, names.budget_name(owner.name)),
        "spec": {"minAvailable": min_available, "selector": {"matchLabels": names.replica_selector(owner.name)}},
    }
