"""What the operator may do is what it does: roles compared with the API server's audit log. Runs last."""

import subprocess
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import pytest
import yaml

from e2e.support import audit, operator
from e2e.support.environment import ROOT, Environment
from e2e.support.kubectl import Object

pytestmark = pytest.mark.last

UNUSED: Final = {
    ("inferenceservices/finalizers", "update"): "asked for by an admission plugin that not all servers run: owner "
    "references that block deletion",
    (
        "controllerrevisions",
        "get",
    ): "asked for when one exists that the operator does not know of: it ended between making it and hearing of it",
}
"""Grants that no test can use, and why they are there."""


WHILE_UNINSTALLED: Final = {("get", "leases"), ("patch", "leases")}
"""What is forbidden to an operator whose roles go with it: to let go of the Lease."""


class Grant(NamedTuple):
    """One verb on one resource."""

    group: str
    resource: str
    verb: str


def granted(objects: Iterable[Object]) -> set[Grant]:
    """Everything that roles of the operator allow."""
    return set(_grants(objects))


def _grants(objects: Iterable[Object]) -> Iterator[Grant]:
    for each in objects:
        if each["kind"] in ("Role", "ClusterRole") and each["metadata"]["name"].startswith("kvasir-operator"):
            for rule in each["rules"]:
                for group in rule["apiGroups"]:
                    yield from (Grant(group, *pair) for pair in _pairs(rule))


def _pairs(rule: Object) -> Iterator[tuple[str, str]]:
    for resource in rule["resources"]:
        for verb in rule["verbs"]:
            yield resource, verb


def rendered() -> list[Object]:
    """Roles of the local overlay, and those that the webhook adds."""
    overlay = subprocess.run(
        ["kubectl", "kustomize", str(operator.OVERLAY)], check=True, capture_output=True, text=True
    )
    webhook = (ROOT / "manifests" / "components" / "webhook" / "rbac.yaml").read_text(encoding="utf-8")
    return [*yaml.safe_load_all(overlay.stdout), *yaml.safe_load_all(webhook)]


@pytest.fixture(scope="module")
def asked(environment: Environment) -> list[audit.Request]:
    """All that the operator has asked of this cluster since it was made."""
    if not environment.own:
        pytest.skip("the audit log is that of a cluster made here")
    assert audit.log_file().exists(), "the cluster was made by an older version: make cluster-down"
    return list(audit.requests(audit.log_file()))


def test_nothing_was_forbidden(asked: list[audit.Request]) -> None:
    """A call that the roles do not allow would show here, and only here where an error is waited out."""
    refused = {(each.verb, each.resource) for each in asked if not each.allowed}
    assert refused - WHILE_UNINSTALLED == set()


def test_no_write_went_to_what_is_not_the_operators(asked: list[audit.Request]) -> None:
    """The spec of a service, and objects of other kinds, are never written."""
    written = {(each.resource, each.verb) for each in asked if each.is_write}
    assert not {resource for resource, _ in written} & {"inferenceservices", "nodes"}


def test_everything_that_is_granted_was_used(asked: list[audit.Request], request: pytest.FixtureRequest) -> None:
    """In the whole of the cluster tests; what no test can use has its reason above."""
    here = {path.name for path in (ROOT / "e2e").glob("test_*.py")}
    if not here <= {item.path.name for item in request.session.items}:
        pytest.skip("needs what all cluster tests did: make e2e")
    used = {Grant(each.group, each.resource, each.verb) for each in asked if each.code < 400}
    unused = {grant for grant in granted(rendered()) - used if (grant.resource, grant.verb) not in UNUSED}
    assert unused == set()
