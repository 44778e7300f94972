"""Replicas follow the load that the engines tell of, whatever happens to the operator meanwhile."""

import json
import os
import subprocess
import sys
from contextlib import AbstractContextManager
from typing import Any

import pytest

from e2e.support import operator, services, traffic
from e2e.support.environment import ROOT, Environment
from e2e.support.kubectl import Kubectl, Object
from e2e.support.waiting import wait_for

SCALING = {
    "minReplicas": 1,
    "maxReplicas": 2,
    "targets": {"kvCacheUtilization": 0.6, "queuedRequestsPerReplica": 50},
    "scaleDown": {"stabilization": "20s", "maxRatePerMinute": 6},
}
CLIENTS = 6
TOKENS = 300


def load(base: str) -> AbstractContextManager[traffic.Traffic]:
    """Clients that ask for long answers until the block ends."""
    return traffic.steady(base, "tiny", CLIENTS, TOKENS)


def scaled_service(model_uri: str) -> Object:
    """1,008 tokens of KV cache a replica; six answers of 300 want as many. The manifest has no replicas."""
    made = services.inference_service(
        "tiny",
        model_uri,
        model={"source": {"uri": model_uri}, "maxModelLen": 512},
        engine={"kvCacheMemory": "2Mi", "maxNumSeqs": 16},
        scaling=SCALING,
    )
    del made["spec"]["replicas"]
    return made


def replicas(kubectl: Kubectl) -> int:
    return int((kubectl.get("isvc", "tiny") or {})["spec"]["replicas"])


def kill_operator(environment: Environment) -> None:
    for pod in operator.pods(environment.kubectl):
        environment.kubectl.within(operator.NAMESPACE).run(
            "delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force"
        )


def command(environment: Environment, *args: str, stdin: str = "") -> str:
    """What a command of the operator's program prints, with the cluster's credentials."""
    done = subprocess.run(
        [sys.executable, "-m", "kvasir_operator", *args],
        cwd=ROOT,
        env=os.environ | {"KUBECONFIG": str(environment.kubectl.kubeconfig)},
        input=stdin,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout


@pytest.mark.timeout(900)
def test_pressure_on_the_cache_adds_a_replica_and_its_end_takes_it_away(
    environment: Environment, kubectl: Kubectl, model_uri: str
) -> None:
    """The operator is killed on the way up and on the way down; no request fails, and decisions can be replayed."""
    kubectl.apply(scaled_service(model_uri))
    services.wait_ready(kubectl, "tiny")
    with services.endpoint(environment, kubectl, "tiny") as base:
        with load(base) as seen:
            wait_for("some answers", lambda: len(seen.texts) > 3, timeout=60)
            kill_operator(environment)
            wait_for("a second replica", lambda: replicas(kubectl) == 2, timeout=240, every=1)
            services.wait_ready(kubectl, "tiny", replicas=2, timeout=180)
        wait_for("an idle moment to be seen", lambda: scaling_active(kubectl)["status"] == "True", timeout=90)
        kill_operator(environment)
        wait_for("one replica", lambda: replicas(kubectl) == 1, timeout=240, every=1)
        wait_for("the other to go", lambda: len(kubectl.list("pods", services.REPLICA)) == 1, timeout=120)
    assert seen.failures == []
    check_records(environment, kubectl)


def scaling_active(kubectl: Kubectl) -> dict[str, Any]:
    return services.condition(kubectl.get("isvc", "tiny"), "ScalingActive")


def check_records(environment: Environment, kubectl: Kubectl) -> None:
    """Both changes are in the status, by the KV cache, and are explained and replayed."""
    history = services.status(kubectl, "tiny")["scaling"]["history"]
    assert [(each["from"], each["to"]) for each in history] == [(2, 1), (1, 2)]
    assert "KVCache asks for" in history[-1]["reason"]
    explained = command(environment, "explain", f"{kubectl.namespace}/tiny")
    print(explained)
    assert "2 → 1: Down" in explained
    replayed = command(environment, "replay", "-", stdin=json.dumps(kubectl.get("isvc", "tiny")))
    assert replayed.splitlines()[-1] == "2 decisions, 0 differ"


def test_who_scales_by_hand_decides(environment: Environment, kubectl: Kubectl, model_uri: str) -> None:
    """`kubectl scale` takes the replicas over, and the condition says so; the operator leaves them alone."""
    kubectl.apply(scaled_service(model_uri))
    services.wait_ready(kubectl, "tiny")
    wait_for("scaling to begin", lambda: scaling_active(kubectl).get("status") == "True", timeout=60)
    kubectl.run("scale", "isvc/tiny", "--replicas=2")
    services.wait_ready(kubectl, "tiny", replicas=2, timeout=180)
    taken = wait_for(
        "the other owner to be seen",
        lambda: scaling_active(kubectl) if scaling_active(kubectl)["reason"] == "OwnedByOther" else None,
        timeout=60,
    )
    print(taken["message"])
    assert taken["status"] == "False"
    kill_operator(environment)
    with services.endpoint(environment, kubectl, "tiny") as base, load(base) as seen:
        wait_for("answers", lambda: len(seen.texts) > 6, timeout=90)
    assert replicas(kubectl) == 2
    assert seen.failures == []
