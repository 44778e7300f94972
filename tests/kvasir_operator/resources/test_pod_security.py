"""Every pod that Kvasir makes meets the `restricted` Pod Security profile, rule by rule.

The rules are those of https://kubernetes.io/docs/concepts/security/pod-security-standards/ (baseline and restricted),
as a table here, since servers before 1.23 enforce none.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
import yaml

from kvasir_operator.api.crd import ROOT
from kvasir_operator.api.v1alpha1 import InferenceService
from kvasir_operator.resources.inspection import build_inspection_pod
from kvasir_operator.resources.pod import build_pod
from kvasir_operator.resources.template_hash import RevisionTemplate
from kvasir_operator.settings import Settings

MakeService = Callable[..., InferenceService]
Spec = dict[str, Any]

SETTINGS: Final = Settings(allow_file_sources=True, file_source_roots=["/models"])
VOLUMES: Final = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected"} | {
    "secret"
}
SERVICES: Final[dict[str, Spec]] = {
    "claim": {"uri": "pvc://models/tiny"},
    "fetched": {"uri": "https://models.example/tiny"},
    "hub": {"uri": "hf://org/name@main"},
    "gpu": {"uri": "pvc://models/tiny", "accelerator": {"vendor": "nvidia", "count": 2, "minMemory": "40Gi"}},
    "keys": {"uri": "pvc://models/tiny", "router": {"apiKeysSecret": "keys"}},
    "account": {"uri": "pvc://models/tiny", "serviceAccountName": "models"},
}


def containers(spec: Spec) -> list[Spec]:
    return [*spec.get("initContainers", []), *spec["containers"], *spec.get("ephemeralContainers", [])]


def securities(spec: Spec) -> Iterator[Spec]:
    """What holds for each container: its own settings over the pod's."""
    for container in containers(spec):
        yield {**spec.get("securityContext", {}), **container.get("securityContext", {})}


RULES: Final[dict[str, Callable[[Spec], bool]]] = {
    "no host namespaces": lambda spec: not any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")),
    "not privileged": lambda spec: not any(each.get("privileged") for each in securities(spec)),
    "no host ports": lambda spec: not any("hostPort" in port for c in containers(spec) for port in c.get("ports", [])),
    "no SELinux options": lambda spec: not any("seLinuxOptions" in each for each in securities(spec)),
    "default /proc mount": lambda spec: all(each.get("procMount", "Default") == "Default" for each in securities(spec)),
    "no kernel parameters": lambda spec: not spec.get("securityContext", {}).get("sysctls"),
    "volume types": lambda spec: all(set(each) - {"name"} <= VOLUMES for each in spec.get("volumes", [])),
    "no escalation": lambda spec: all(each.get("allowPrivilegeEscalation") is False for each in securities(spec)),
    "not root": lambda spec: all(each.get("runAsNonRoot") is True for each in securities(spec)),
    "a user that is not 0": lambda spec: all(each.get("runAsUser", 1) != 0 for each in securities(spec)),
    "seccomp": lambda spec: all(
        each.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost") for each in securities(spec)
    ),
    "no capabilities": lambda spec: all(
        each.get("capabilities") is not None
        and each["capabilities"].get("drop") == ["ALL"]
        and set(each["capabilities"].get("add", [])) <= {"NET_BIND_SERVICE"}
        for each in securities(spec)
    ),
    # Beyond the profile, which leaves these open:
    "read-only root": lambda spec: all(each.get("readOnlyRootFilesystem") is True for each in securities(spec)),
}


def broken(spec: Spec) -> list[str]:
    """The rules that a pod does not keep."""
    return [name for name, holds in RULES.items() if not holds(spec)]


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest, make_service: MakeService) -> InferenceService:
    return make_service(**SERVICES[request.param])


def test_replicas(service: InferenceService) -> None:
    """Whatever the source and the device; none has a token for the API server."""
    spec = build_pod(service.metadata, RevisionTemplate.of(service, SETTINGS), "tiny-r1-a", SETTINGS)["spec"]
    assert broken(spec) == []
    assert spec["automountServiceAccountToken"] is False


def test_inspections(service: InferenceService) -> None:
    """Pods that look at a model."""
    spec = build_inspection_pod(service.metadata, RevisionTemplate.of(service, SETTINGS), "0" * 16, SETTINGS)["spec"]
    assert broken(spec) == []
    assert spec["automountServiceAccountToken"] is False


def test_models_of_the_node_break_one_rule_alone(make_service: MakeService) -> None:
    """Host paths are outside the profile, which is why the settings must allow them."""
    template = RevisionTemplate.of(make_service("file:///models/tiny"), SETTINGS)
    spec = build_pod(make_service().metadata, template, "tiny-r1-a", SETTINGS)["spec"]
    assert broken(spec) == ["volume types"]


def test_the_operator() -> None:
    """Its namespace enforces the profile."""
    base = ROOT / "manifests" / "base"
    [deployment] = yaml.safe_load_all((base / "deployment.yaml").read_text(encoding="utf-8"))
    assert broken(deployment["spec"]["template"]["spec"]) == []
    [namespace] = yaml.safe_load_all((base / "namespace.yaml").read_text(encoding="utf-8"))
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_rules_find_what_breaks_them() -> None:
    """A pod that asks for everything keeps no rule, and an empty one none of those that must be said."""
    open_wide = {
        "hostNetwork": True,
        "securityContext": {"sysctls": [{"name": "a", "value": "b"}], "seLinuxOptions": {"type": "t"}},
        "volumes": [{"name": "host", "hostPath": {"path": "/"}}],
        "containers": [
            {
                "ports": [{"containerPort": 80, "hostPort": 80}],
                "securityContext": {
                    "privileged": True,
                    "procMount": "Unmasked",
                    "runAsUser": 0,
                    "capabilities": {"add": ["SYS_ADMIN"]},
                },
            }
        ],
    }
    assert broken(open_wide) == list(RULES)
    said = ["no escalation", "not root", "seccomp", "no capabilities", "read-only root"]
    assert broken({"containers": [{"name": "c"}]}) == said
