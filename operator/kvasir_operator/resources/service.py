"""The Service that users call: the user port of the pods that are ready, the operator port never."""

from typing import Any

from kvasir_operator.api.v1alpha1 import ObjectMeta
from kvasir_operator.resources import names
from kvasir_operator.resources.owner import owned_metadata


def build_service(owner: ObjectMeta) -> dict[str, Any]:
    """The manifest of the user-facing Service. A pod that is not ready by all its gates gets no request."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": owned_metadata(owner, names.service_name(owner.name)),
        "spec": {
            "type": "ClusterIP",
            "selector": names.replica_selector(owner.name),
            "publishNotReadyAddresses": False,
            "ports": [
                {
                    "name": names.USER_PORT_NAME,
                    "port": names.USER_PORT,
                    "targetPort": names.USER_PORT_NAME,
                    "protocol": "TCP",
                }
            ],
        },
    }
