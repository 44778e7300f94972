"""Changing the number of replicas, whoever changes it."""

from e2e.support import operator, services, traffic
from e2e.support.environment import Environment
from e2e.support.kubectl import Kubectl
from e2e.support.waiting import wait_for


def test_one_to_three_to_one_without_a_failed_request(
    environment: Environment, kubectl: Kubectl, model_uri: str
) -> None:
    """`kubectl scale` up and down under streaming clients; what leaves has drained first."""
    kubectl.apply(services.inference_service("tiny", model_uri))
    services.wait_ready(kubectl, "tiny")
    first = {pod["metadata"]["uid"] for pod in services.pods(kubectl, "tiny")}
    with services.endpoint(environment, kubectl, "tiny") as base, traffic.steady(base, "tiny", reconnect=False) as seen:
        kubectl.run("scale", "isvc/tiny", "--replicas=3")
        services.wait_ready(kubectl, "tiny", replicas=3)
        answered = len(seen.texts)
        wait_for("answers from three replicas", lambda: len(seen.texts) > answered + 8, timeout=60)
        kubectl.run("scale", "isvc/tiny", "--replicas=1")
        services.wait_ready(kubectl, "tiny", replicas=1)
        wait_for("two replicas to go", lambda: len(kubectl.list("pods")) == 1, timeout=90)
    assert seen.failures == []
    assert len(seen.texts) > 8
    assert len(first) == 1


def test_an_operator_killed_in_the_middle_of_a_change_finishes_it_afterwards(
    environment: Environment, kubectl: Kubectl, model_uri: str
) -> None:
    """Nothing is remembered outside the cluster: the next operator goes on where the last one stopped."""
    kubectl.apply(services.inference_service("tiny", model_uri))
    services.wait_ready(kubectl, "tiny")
    kubectl.run("scale", "isvc/tiny", "--replicas=3")
    wait_for("a second pod", lambda: len(services.pods(kubectl, "tiny")) > 1, timeout=30)
    for pod in operator.pods(environment.kubectl):
        environment.kubectl.within(operator.NAMESPACE).run(
            "delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force"
        )
    services.wait_ready(kubectl, "tiny", replicas=3, timeout=180)
    assert len(services.pods(kubectl, "tiny")) == 3


def test_a_change_made_while_no_operator_runs_is_carried_out_later(
    environment: Environment, kubectl: Kubectl, model_uri: str
) -> None:
    """The operator is level-triggered: it acts on what is, not on what it has seen happen."""
    operator.scale(environment.kubectl, 0)
    try:
        kubectl.apply(services.inference_service("tiny", model_uri, replicas=2))
    finally:
        operator.scale(environment.kubectl, 1)
    services.wait_ready(kubectl, "tiny", replicas=2)
