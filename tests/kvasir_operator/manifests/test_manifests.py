"""What `kubectl apply -k` and `kubectl apply -f` are given: read without a cluster."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvasir_operator import webhooks
from kvasir_operator.api import crd, v1alpha1
from kvasir_operator.api.v1alpha1 import InferenceService
from kvasir_operator.api.validation import validate
from kvasir_operator.resources import names
from kvasir_operator.resources.sources import check_source
from kvasir_operator.settings import Settings, unknown_variables

Manifest = dict[str, Any]

MANIFESTS = crd.ROOT / "manifests"
OVERLAYS = sorted(path.name for path in (MANIFESTS / "overlays").iterdir())
SAMPLES = sorted(path.name for path in (MANIFESTS / "samples").glob("*.yaml"))
REMOVED_APIS = ("v1beta1", "v1beta2", "v2beta1", "v2beta2")
"""Versions of Kubernetes' own APIs that servers between 1.20 and the newest do not all serve."""

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which holds kustomize, is absent")


def rendered(folder: Path) -> list[Manifest]:
    done = subprocess.run(["kubectl", "kustomize", str(folder)], check=True, capture_output=True, text=True)
    return list(yaml.safe_load_all(done.stdout))


def of_kind(objects: list[Manifest], kind: str) -> list[Manifest]:
    return [each for each in objects if each["kind"] == kind]


def sample_objects(name: str) -> list[Manifest]:
    return list(yaml.safe_load_all((MANIFESTS / "samples" / name).read_text(encoding="utf-8")))


def settings_of(objects: list[Manifest]) -> Settings:
    [config] = of_kind(objects, "ConfigMap")
    assert unknown_variables(config["data"]) == []
    return Settings.from_environment(config["data"])


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> list[Manifest]:
    return rendered(MANIFESTS / "overlays" / request.param)


@pytest.fixture(scope="module")
def production() -> list[Manifest]:
    return rendered(MANIFESTS / "overlays" / "production")


@needs_kubectl
class TestOverlays:
    def test_settings_are_accepted_by_the_operator(self, overlay: list[Manifest]) -> None:
        assert settings_of(overlay).log_format == "json"

    def test_apis_are_served_by_every_version(self, overlay: list[Manifest]) -> None:
        for each in overlay:
            assert not each["apiVersion"].endswith(REMOVED_APIS), each["kind"]

    def test_everything_is_in_the_operators_namespace_and_labelled(self, overlay: list[Manifest]) -> None:
        cluster_wide = {"Namespace", "CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"} | {
            "MutatingWebhookConfiguration",
            "ValidatingWebhookConfiguration",
        }
        for each in overlay:
            metadata = each["metadata"]
            assert metadata["labels"]["app.kubernetes.io/name"] in {"kvasir", "kvasir-operator"}, metadata["name"]
            if each["kind"] not in cluster_wide:
                assert metadata["namespace"] == "kvasir-system", metadata["name"]

    def test_the_lease_that_may_be_written_is_the_one_of_the_settings(self, overlay: list[Manifest]) -> None:
        """Kustomize appends its hash to names in rules that are also names of a generated ConfigMap."""
        [role] = [each for each in of_kind(overlay, "Role") if each["metadata"]["name"] == "kvasir-operator-leader"]
        [named] = [rule["resourceNames"] for rule in role["rules"] if "resourceNames" in rule]
        assert named == [settings_of(overlay).lease_name]

    def test_the_operator_runs_as_nobody(self, overlay: list[Manifest]) -> None:
        [deployment] = of_kind(overlay, "Deployment")
        spec = deployment["spec"]["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()

    def test_ports_and_probes_are_those_of_the_settings(self, overlay: list[Manifest]) -> None:
        [deployment] = of_kind(overlay, "Deployment")
        [container] = deployment["spec"]["template"]["spec"]["containers"]
        settings = settings_of(overlay)
        ports = {"metrics": settings.metrics_port, "health": settings.health_port}
        ports |= {"webhook": settings.webhook_port} if settings.webhook else {}
        assert {port["name"]: port["containerPort"] for port in container["ports"]} == ports
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[probe]["httpGet"]["port"] == "health"

    def test_services_select_the_operators_pods(self, overlay: list[Manifest]) -> None:
        [deployment] = of_kind(overlay, "Deployment")
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        for service in of_kind(overlay, "Service"):
            assert service["spec"]["selector"].items() <= labels.items()


@needs_kubectl
def test_folders_of_nodes_may_be_mounted_on_local_clusters_alone() -> None:
    local, production = (settings_of(rendered(MANIFESTS / "overlays" / name)) for name in ("local", "production"))
    assert (local.allow_file_sources, local.file_source_roots) == (True, ["/var/lib/kvasir/models"])
    assert not production.allow_file_sources


@needs_kubectl
def test_production_survives_the_loss_of_a_node() -> None:
    objects = rendered(MANIFESTS / "overlays" / "production")
    [deployment] = of_kind(objects, "Deployment")
    [budget] = of_kind(objects, "PodDisruptionBudget")
    assert deployment["spec"]["replicas"] == 2
    assert deployment["spec"]["template"]["spec"]["affinity"]["podAntiAffinity"]
    assert budget["spec"] == {"maxUnavailable": 1, "selector": deployment["spec"]["selector"]}


@needs_kubectl
def test_the_component_adds_the_rules_to_the_definition(tmp_path: Path) -> None:
    """CEL in the schema only where it is asked for."""
    plain = rendered(MANIFESTS / "base")
    below = Path(*[".."] * (len(tmp_path.parts) - 1)) / str(MANIFESTS).lstrip("/")
    (tmp_path / "kustomization.yaml").write_text(
        yaml.safe_dump({"resources": [f"{below}/base"], "components": [f"{below}/components/cel"]})
    )
    with_rules = rendered(tmp_path)
    assert "x-kubernetes-validations" not in yaml.safe_dump(of_kind(plain, "CustomResourceDefinition"))
    text = yaml.safe_dump(of_kind(with_rules, "CustomResourceDefinition"))
    assert text.count("x-kubernetes-validations") == len(crd.render_cel())


WEBHOOK_PATHS = [
    ("MutatingWebhookConfiguration", webhooks.MUTATE),
    ("ValidatingWebhookConfiguration", webhooks.VALIDATE),
]


@needs_kubectl
class TestWebhook:
    """What the component says is what the operator does."""

    @pytest.mark.parametrize(("kind", "path"), WEBHOOK_PATHS)
    def test_the_api_server_calls_the_port_that_the_operator_opens(
        self, production: list[Manifest], kind: str, path: str
    ) -> None:
        [configuration] = of_kind(production, kind)
        assert configuration["metadata"]["name"] == names.WEBHOOK_CONFIGURATION
        [hook] = configuration["webhooks"]
        client = hook["clientConfig"]["service"]
        [service] = [each for each in of_kind(production, "Service") if each["metadata"]["name"] == client["name"]]
        assert f"{client['name']}.{client['namespace']}.svc" == names.webhook_host("kvasir-system")
        assert client["path"] == path
        assert [port["targetPort"] for port in service["spec"]["ports"]] == ["webhook"]
        assert settings_of(production).webhook

    @pytest.mark.parametrize(("kind", "path"), WEBHOOK_PATHS)
    def test_it_is_asked_about_specs_of_this_version_alone(
        self, production: list[Manifest], kind: str, path: str
    ) -> None:
        [configuration] = of_kind(production, kind)
        [hook] = configuration["webhooks"]
        [rule] = hook["rules"]
        assert (rule["apiGroups"], rule["apiVersions"]) == ([v1alpha1.GROUP], [v1alpha1.VERSION])
        assert (rule["resources"], rule["operations"]) == ([v1alpha1.PLURAL], ["CREATE", "UPDATE"])
        assert (hook["failurePolicy"], hook["sideEffects"]) == ("Ignore", "None")

    def test_only_its_own_objects_may_be_written(self, production: list[Manifest]) -> None:
        allowed = {
            resource: rule["resourceNames"]
            for kind in ("Role", "ClusterRole")
            for role in of_kind(production, kind)
            if role["metadata"]["name"] == "kvasir-operator-webhook"
            for rule in role["rules"]
            for resource in rule["resources"]
        }
        assert allowed == {
            "secrets": [names.WEBHOOK],
            "validatingwebhookconfigurations": [names.WEBHOOK_CONFIGURATION],
            "mutatingwebhookconfigurations": [names.WEBHOOK_CONFIGURATION],
        }

    def test_without_the_component_nothing_of_it_is_there(self) -> None:
        plain = rendered(MANIFESTS / "overlays" / "local")
        assert [of_kind(plain, kind) for kind, _ in WEBHOOK_PATHS] == [[], []]
        assert not settings_of(plain).webhook


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_are_sound_and_hold_no_field_that_the_api_lacks(name: str) -> None:
    services = [each for each in sample_objects(name) if each["kind"] == "InferenceService"]
    assert services
    for service in services:
        assert validate(service) == []
        assert InferenceService.from_manifest(service).to_manifest()["spec"] == service["spec"]


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_say_what_they_show(name: str) -> None:
    first = (MANIFESTS / "samples" / name).read_text(encoding="utf-8").splitlines()[0]
    assert re.fullmatch(r"# [A-Z].+", first)


@needs_kubectl
def test_the_demos_model_lies_where_the_local_overlay_allows() -> None:
    [service] = sample_objects("cpu-tiny-llama.yaml")
    source = InferenceService.from_manifest(service).spec.model.source
    assert check_source(source, settings_of(rendered(MANIFESTS / "overlays" / "local"))) == []
