"""The admission webhook on the real cluster: asked by the real API server, with certificates that keep themselves."""

import base64
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.support import operator, services
from e2e.support.environment import ROOT, Environment
from e2e.support.kubectl import Kubectl, KubectlError, Object
from e2e.support.waiting import wait_for
from kvasir_operator.certificates import LIFETIME, Certificates
from kvasir_operator.resources import names
from kvasir_operator.webhook_certificates import TURN_SECONDS, manifest_of

MANIFESTS = ROOT / "manifests"
CONFIGURATIONS = "validatingwebhookconfigurations,mutatingwebhookconfigurations"
REFUSAL = "spec.scaling.maxReplicas: must be at least minReplicas (4), got 2"
NOTICED_WITHIN = 2 * TURN_SECONDS + 15
"""Seconds until every replica has seen a change of the Secret, and served what follows from it."""


@pytest.fixture(scope="module")
def webhook(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubectl]:
    """The local overlay with the component and two operators; without them again afterwards."""
    folder = tmp_path_factory.mktemp("overlay")
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization(folder)))
    kubectl = environment.kubectl
    system = kubectl.within(operator.NAMESPACE)
    kubectl.run("apply", "-k", str(folder))
    try:
        system.run("rollout", "status", f"deployment/{operator.DEPLOYMENT}", "--timeout=240s", timeout=250)
        yield kubectl
    finally:
        operator.install(kubectl)  # first, or operators would ask for what they may not any more
        kubectl.run("delete", CONFIGURATIONS, names.WEBHOOK_CONFIGURATION)
        kubectl.run("delete", "clusterrole,clusterrolebinding", names.WEBHOOK)
        system.run("delete", "role,rolebinding,service,secret", names.WEBHOOK)


def kustomization(folder: Path) -> Object:
    """An overlay as a user writes it; kustomize takes relative paths alone."""
    manifests = os.path.relpath(MANIFESTS, folder.resolve())
    patch = [{"op": "replace", "path": "/spec/replicas", "value": 2}]
    return {
        "resources": [f"{manifests}/overlays/local"],
        "components": [f"{manifests}/components/webhook"],
        "patches": [{"target": {"kind": "Deployment", "name": operator.DEPLOYMENT}, "patch": yaml.safe_dump(patch)}],
    }


def contradictory(name: str = "bad") -> Object:
    """A service that the schema takes and the checks do not."""
    scaling = {"minReplicas": 4, "maxReplicas": 2}
    return services.inference_service(name, "pvc://models/m", scaling=scaling)


def refusal(kubectl: Kubectl, service: Object) -> str:
    """What the API server says to it; empty when it was taken, and it is deleted again."""
    try:
        kubectl.apply(service)
    except KubectlError as error:
        return str(error)
    kubectl.run("delete", "isvc", service["metadata"]["name"])
    return ""


def refuses(kubectl: Kubectl) -> bool:
    return REFUSAL in refusal(kubectl, contradictory())


def secret_of(webhook: Kubectl) -> Object:
    found = webhook.within(operator.NAMESPACE).get("secret", names.WEBHOOK)
    assert found is not None
    return found


def certificates_of(webhook: Kubectl) -> Certificates:
    found = Certificates.read({key: base64.b64decode(value) for key, value in secret_of(webhook)["data"].items()})
    assert found is not None
    return found


def bundle_of(webhook: Kubectl) -> bytes:
    """The authorities that the API server trusts for both webhooks; empty while these differ."""
    path = "jsonpath={range .items[*]}{.webhooks[0].clientConfig.caBundle}{' '}{end}"
    words = webhook.run("get", CONFIGURATIONS, "-l", "app.kubernetes.io/name=kvasir-operator", "-o", path).split()
    return base64.b64decode(words[0]) if len(words) == 2 and words[0] == words[1] else b""


def served(webhook: Kubectl) -> set[bytes]:
    """The certificates that the operator's pods show, as PEM; empty for one that does not answer."""
    pods = [pod for pod in operator.pods(webhook) if "deletionTimestamp" not in pod["metadata"]]
    return {shown(pod["status"].get("podIP", "")) for pod in pods}


def shown(address: str) -> bytes:
    try:
        return ssl.get_server_certificate((address, 9443), timeout=10).encode() if address else b""
    except OSError:
        return b""


def wait_served(webhook: Kubectl) -> None:
    """Wait until every replica serves what the Secret holds."""

    def look() -> bool:
        return served(webhook) == {certificates_of(webhook).certificate} and bundle_of(webhook) == (
            certificates_of(webhook).bundle
        )

    wait_for("all replicas to serve the Secret's certificate", look, timeout=NOTICED_WITHIN, every=2)


@contextmanager
def stopped(webhook: Kubectl) -> Iterator[None]:
    operator.scale(webhook, 0)
    try:
        yield
    finally:
        operator.scale(webhook, 2)


def test_a_bad_spec_is_refused_with_field_bound_and_value(webhook: Kubectl, kubectl: Kubectl) -> None:
    """By kubectl apply; every problem has its line, and nothing is stored."""
    bad = contradictory()
    bad["spec"]["rollout"] = {"strategy": "Surge", "maxSurge": 0}
    said = refusal(kubectl, bad)
    assert 'The InferenceService "bad" is invalid' in said
    assert REFUSAL in said
    assert "spec.rollout.maxSurge: must be at least 1 with strategy Surge, got 0" in said
    assert kubectl.list("isvc") == []


def test_what_follows_from_other_fields_is_written_down(webhook: Kubectl, kubectl: Kubectl) -> None:
    """Applying the same manifest again changes nothing; what was written follows when its cause changes."""
    gpus = services.inference_service("gpus", "pvc://models/m", accelerator={"count": 2}, replicas=0)
    kubectl.apply(gpus)
    stored = kubectl.get("isvc", "gpus") or {}
    assert stored["spec"]["model"]["servedName"] == "gpus"
    assert stored["spec"]["parallelism"] == {"tensor": 2, "pipeline": 1}
    kubectl.apply(gpus)
    assert (kubectl.get("isvc", "gpus") or {})["metadata"]["generation"] == stored["metadata"]["generation"]
    gpus["spec"]["accelerator"]["count"] = 4
    kubectl.apply(gpus)
    assert (kubectl.get("isvc", "gpus") or {})["spec"]["parallelism"]["tensor"] == 4


def test_the_webhook_rolls_nothing(webhook: Kubectl, kubectl: Kubectl) -> None:
    """A service of before keeps its revision when defaults are written into it."""
    webhook.run("label", "namespace", str(kubectl.namespace), "kvasir.dev/admission=disabled")
    before = services.inference_service("before", "pvc://models/m", accelerator={"count": 2}, replicas=0)

    def revision() -> str:
        return str(services.status(kubectl, "before").get("updateRevision", ""))

    def named(count: int) -> bool:
        """The API server's own view of the namespace's label lags a little."""
        patch = f'{{"spec": {{"rollout": {{"revisionHistoryLimit": {count}}}}}}}'
        kubectl.run("patch", "isvc", "before", "--type=merge", "-p", patch)
        return "servedName" in (kubectl.get("isvc", "before") or {})["spec"]["model"]

    def applied_unnamed() -> bool:
        kubectl.run("delete", "isvc", "before", "--ignore-not-found")
        kubectl.apply(before)
        return "servedName" not in (kubectl.get("isvc", "before") or {})["spec"]["model"]

    wait_for("the namespace to be left out", applied_unnamed, timeout=15)
    first = wait_for("a revision", revision, timeout=30)
    webhook.run("label", "namespace", str(kubectl.namespace), "kvasir.dev/admission-")
    counts = iter(range(6, 100))
    wait_for("the defaults to be written", lambda: named(next(counts)), timeout=15)
    generation = (kubectl.get("isvc", "before") or {})["metadata"]["generation"]
    wait_for(
        "the operator to have read them",
        lambda: services.status(kubectl, "before").get("observedGeneration") == generation,
        timeout=30,
    )
    assert revision() == first


def test_the_operators_settings_count(webhook: Kubectl, kubectl: Kubectl) -> None:
    """A folder of the node that services may not use is refused, whoever asks."""
    said = refusal(kubectl, services.inference_service("outside", "file:///etc"))
    assert "spec.model.source.uri: must lie in a folder of the operator's setting" in said
    assert 'got "file:///etc"' in said


def test_a_sound_spec_serves_and_a_change_for_the_worse_is_refused(
    webhook: Kubectl, kubectl: Kubectl, model_uri: str
) -> None:
    """The stored spec stays as it was; kubectl scale is not asked about."""
    kubectl.apply(services.inference_service("tiny", model_uri))
    services.wait_ready(kubectl, "tiny")
    patch = '{"spec": {"scaling": {"minReplicas": 4, "maxReplicas": 2}}}'
    with pytest.raises(KubectlError, match="must be at least minReplicas"):
        kubectl.run("patch", "isvc", "tiny", "--type=merge", "-p", patch)
    assert "scaling" not in (kubectl.get("isvc", "tiny") or {})["spec"]
    kubectl.run("scale", "isvc/tiny", "--replicas=0")


def test_while_no_operator_answers_specs_are_admitted_and_reported_later(webhook: Kubectl, kubectl: Kubectl) -> None:
    """Ignore: nothing is blocked, and the conditions say what the webhook would have said."""
    with stopped(webhook):
        kubectl.apply(contradictory("late"))
    told = services.wait_condition(kubectl, "late", "Ready", "False", REFUSAL, timeout=30)
    assert told["reason"]
    kubectl.run("label", "isvc", "late", "team=a")  # a change that leaves the bad spec as it is
    wait_for("the webhook to answer again", lambda: refuses(kubectl), timeout=30)
    kubectl.run("delete", "isvc", "late", timeout=60)


def test_a_namespace_can_be_left_out(webhook: Kubectl, kubectl: Kubectl) -> None:
    webhook.run("label", "namespace", str(kubectl.namespace), "kvasir.dev/admission=disabled")
    wait_for("the bad spec to be admitted", lambda: refusal(kubectl, contradictory()) == "", timeout=15)


def test_a_certificate_near_its_end_is_renewed_while_the_webhook_answers(webhook: Kubectl, kubectl: Kubectl) -> None:
    """Two replicas agree on one; the API server trusts it from the first request on."""
    wait_served(webhook)
    before = datetime.now(UTC) - LIFETIME + timedelta(days=5)
    old = certificates_of(webhook).reissued(names.webhook_host(operator.NAMESPACE), before)
    put(webhook, manifest_of(operator.NAMESPACE, old))
    asked: list[bool] = []

    def renewed() -> bool:
        asked.append(refuses(kubectl))
        return certificates_of(webhook).certificate != old.certificate

    wait_for("the certificate to be renewed", renewed, timeout=NOTICED_WITHIN, every=1)
    assert certificates_of(webhook).expires > datetime.now(UTC) + LIFETIME - timedelta(days=1)
    assert certificates_of(webhook).authority == old.authority
    wait_served(webhook)
    asked.append(refuses(kubectl))
    assert all(asked), asked


def test_a_deleted_secret_is_made_anew_without_a_gap(webhook: Kubectl, kubectl: Kubectl) -> None:
    """A new authority; certificates of the old one are trusted until all replicas serve new ones."""
    wait_served(webhook)
    before = certificates_of(webhook)
    webhook.within(operator.NAMESPACE).run("delete", "secret", names.WEBHOOK)
    asked: list[bool] = []

    def replaced() -> Any:
        asked.append(refuses(kubectl))
        found = webhook.within(operator.NAMESPACE).get("secret", names.WEBHOOK)
        return found and served(webhook) == {certificates_of(webhook).certificate}

    wait_for("all replicas to serve new certificates", replaced, timeout=NOTICED_WITHIN, every=1)
    assert certificates_of(webhook).authority != before.authority
    assert before.authority in bundle_of(webhook)
    assert all(asked), asked


def put(webhook: Kubectl, secret: Object) -> None:
    webhook.within(operator.NAMESPACE).run("replace", "-f", "-", stdin=yaml.safe_dump(secret))
