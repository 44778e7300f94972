"""The NetworkPolicy: requests may come from anywhere, the operator port answers the operator alone."""

from typing import Any, Final

from kvasir_operator.api.v1alpha1 import ObjectMeta
from kvasir_operator.resources import names
from kvasir_operator.resources.owner import owned_metadata

NAMESPACE_LABEL: Final = "kubernetes.io/metadata.name"
"""Set by Kubernetes itself from 1.21 on; manifests/base/namespace.yaml sets it for older servers."""


def build_network_policy(owner: ObjectMeta, operator_namespace: str) -> dict[str, Any]:
    """The manifest. The kubelet's probes need no rule: a node always reaches its own pods.

    Pods that look at a model are under it too: they listen to nothing.
    """
    operator = {
        "namespaceSelector": {"matchLabels": {NAMESPACE_LABEL: operator_namespace}},
        "podSelector": {"matchLabels": {names.NAME_LABEL: names.OPERATOR}},
    }
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": owned_metadata(owner, names.network_policy_name(owner.name)),
        "spec": {
            "podSelector": {"matchLabels": {names.SERVICE_LABEL: owner.name}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"ports": [{"port": names.USER_PORT, "protocol": "TCP"}]},
                {"from": [operator], "ports": [{"port": names.ADMIN_PORT, "protocol": "TCP"}]},
            ],
        },
    }
