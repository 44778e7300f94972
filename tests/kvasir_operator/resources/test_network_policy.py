"""The NetworkPolicy, whole."""

from collections.abc import Callable

import yaml

from kvasir_operator.api.crd import ROOT
from kvasir_operator.api.v1alpha1 import InferenceService
from kvasir_operator.resources.network_policy import NAMESPACE_LABEL, build_network_policy

MakeService = Callable[..., InferenceService]


def test_the_operator_port_is_open_to_the_operator_alone(make_service: MakeService) -> None:
    """Requests may come from anywhere; both conditions of the second rule hold at once: one entry, not two."""
    policy = build_network_policy(make_service().metadata, "kvasir-system")
    assert policy["metadata"]["ownerReferences"][0]["uid"] == "u-1"
    assert policy["spec"] == {
        "podSelector": {"matchLabels": {"kvasir.dev/service": "tiny"}},
        "policyTypes": ["Ingress"],
        "ingress": [
            {"ports": [{"port": 8000, "protocol": "TCP"}]},
            {
                "from": [
                    {
                        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kvasir-system"}},
                        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kvasir-operator"}},
                    }
                ],
                "ports": [{"port": 8001, "protocol": "TCP"}],
            },
        ],
    }


def test_the_manifests_bear_what_the_policy_names() -> None:
    """Or the operator would lock itself out."""
    base = ROOT / "manifests" / "base"
    [namespace] = yaml.safe_load_all((base / "namespace.yaml").read_text(encoding="utf-8"))
    assert namespace["metadata"]["labels"][NAMESPACE_LABEL] == namespace["metadata"]["name"]
    [deployment] = yaml.safe_load_all((base / "deployment.yaml").read_text(encoding="utf-8"))
    assert deployment["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"] == "kvasir-operator"
