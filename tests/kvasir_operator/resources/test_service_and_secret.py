"""The Service and the Secret, whole."""

from collections.abc import Callable

from kvasir_operator.api.v1alpha1 import InferenceService
from kvasir_operator.resources.secret import build_admin_secret
from kvasir_operator.resources.service import build_service

MakeService = Callable[..., InferenceService]

LABELS = {
    "app.kubernetes.io/name": "kvasir-runtime",
    "app.kubernetes.io/instance": "tiny",
    "app.kubernetes.io/managed-by": "kvasir-operator",
    "kvasir.dev/service": "tiny",
}
OWNER = {
    "apiVersion": "kvasir.dev/v1alpha1",
    "kind": "InferenceService",
    "name": "tiny",
    "uid": "u-1",
    "controller": True,
    "blockOwnerDeletion": True,
}


def test_users_reach_the_user_port_of_ready_replicas_and_nothing_else(make_service: MakeService) -> None:
    assert build_service(make_service().metadata) == {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "tiny", "namespace": "team", "labels": LABELS, "ownerReferences": [OWNER]},
        "spec": {
            "type": "ClusterIP",
            "selector": {"app.kubernetes.io/component": "runtime", "kvasir.dev/service": "tiny"},
            "publishNotReadyAddresses": False,
            "ports": [{"name": "http", "port": 8000, "targetPort": "http", "protocol": "TCP"}],
        },
    }


def test_the_token_of_the_operator_port_is_kept_in_a_secret(make_service: MakeService) -> None:
    assert build_admin_secret(make_service().metadata, "s3cret") == {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {"name": "tiny-admin", "namespace": "team", "labels": LABELS, "ownerReferences": [OWNER]},
        "data": {"token": "czNjcmV0"},
    }
