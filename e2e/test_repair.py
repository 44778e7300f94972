"""What somebody changes or deletes of a service's objects comes back as it was."""

import pytest

from e2e.support import services
from e2e.support.kubectl import Kubectl
from e2e.support.waiting import wait_for

CHANGES = {
    "service": ('{"spec":{"ports":[{"port":8000,"name":"http","targetPort":9}]}}', "{.spec.ports[0].targetPort}"),
    "poddisruptionbudget": ('{"spec":{"minAvailable":7}}', "{.spec.minAvailable}"),
    "networkpolicy": ('{"spec":{"ingress":[]}}', "{.spec.ingress[1].ports[0].port}"),
}
"""For each kind a merge patch that does harm, and where that shows."""


@pytest.mark.parametrize("kind", CHANGES)
def test_what_was_changed_or_deleted_is_mended(kubectl: Kubectl, model_uri: str, kind: str) -> None:
    """By the operator, which is woken by the change itself."""
    kubectl.apply(services.inference_service("tiny", model_uri, resources={"requests": {"cpu": "900"}}))
    patch, path = CHANGES[kind]

    def value() -> str:
        return kubectl.run("get", kind, "tiny", "--ignore-not-found", "-o", f"jsonpath={path}")

    before = wait_for(f"the {kind}", value, timeout=60)
    kubectl.run("patch", kind, "tiny", "--type=merge", "-p", patch)
    wait_for("the change to be taken back", lambda: value() == before, timeout=20)
    kubectl.run("delete", kind, "tiny")
    wait_for("another one", lambda: value() == before, timeout=20)


def test_revisions_that_nobody_needs_are_forgotten(kubectl: Kubectl, model_uri: str) -> None:
    """Beyond `revisionHistoryLimit`, apart from those in use."""
    service = services.inference_service("tiny", model_uri, resources={"requests": {"cpu": "900"}})
    service["spec"]["rollout"] = {"revisionHistoryLimit": 0}
    kubectl.apply(service)
    [first] = wait_for("a revision", lambda: revisions(kubectl), timeout=60)
    service["spec"]["engine"]["env"] = [{"name": "NEW", "value": "1"}]
    kubectl.apply(service)
    wait_for("another one alone", lambda: len(revisions(kubectl)) == 1 and first not in revisions(kubectl), timeout=60)


def revisions(kubectl: Kubectl) -> list[str]:
    return [each["metadata"]["name"] for each in kubectl.list("controllerrevisions")]
