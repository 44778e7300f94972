"""Installing and removing the operator."""

from e2e.support import operator, services
from e2e.support.environment import Environment
from e2e.support.kubectl import Kubectl
from e2e.support.waiting import wait_for


def installed(kubectl: Kubectl) -> list[str]:
    """What is there of all that the overlay holds."""
    return kubectl.run("get", "-k", str(operator.OVERLAY), "--ignore-not-found", "-o", "name").split()


def test_uninstalling_leaves_nothing_and_installing_again_works(
    environment: Environment, kubectl: Kubectl, model_uri: str
) -> None:
    """`kubectl delete -k` takes everything that `kubectl apply -k` brought, services included."""
    kubectl.apply(services.inference_service("tiny", model_uri))
    services.wait_ready(kubectl, "tiny")
    assert installed(environment.kubectl) != []
    try:
        operator.uninstall(environment.kubectl)
        wait_for("the overlay's objects to go", lambda: not installed(environment.kubectl), timeout=90)
        wait_for("the service's pods to go", lambda: not kubectl.list("pods"), timeout=60)
    finally:
        operator.install(environment.kubectl)
    kubectl.apply(services.inference_service("tiny", model_uri))
    services.wait_ready(kubectl, "tiny")


def test_only_the_leader_acts(environment: Environment) -> None:
    """The Lease names the one pod that runs."""
    system = environment.kubectl.within(operator.NAMESPACE)
    [lease] = [each for each in system.list("leases") if each["metadata"]["name"].startswith("kvasir")]
    assert lease["spec"]["holderIdentity"].startswith(operator.pods(environment.kubectl)[0]["metadata"]["name"])
