"""How everything that the operator makes points to its InferenceService, so that it goes with it."""

from typing import Any

from kvasir_operator.api.v1alpha1 import API_VERSION, KIND, ObjectMeta
from kvasir_operator.resources import names


def owned_metadata(owner: ObjectMeta, name: str, labels: dict[str, str] | None = None) -> dict[str, Any]:
    """Metadata of an object that garbage collection removes with its owner."""
    return {
        "name": name,
        "namespace": owner.namespace,
        "labels": labels or names.owned_labels(owner.name),
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": owner.name,
                "uid": owner.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }
