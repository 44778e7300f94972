"""Changing what replicas are: under load, when it goes wrong, step by step; and emptying a node."""

import json
import shutil
import subprocess
import time
from contextlib import AbstractContextManager
from pathlib import Path

import openai
import pytest

from e2e.support import services, traffic
from e2e.support.environment import Environment
from e2e.support.kubectl import Kubectl, Object
from e2e.support.waiting import wait_for

STREAMS = 32
TOKENS = 96
PROMPT = "Return a list of"


@pytest.fixture(scope="session")
def other_model(model_uri: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another model with the same tokenizer, whose answers are others: its logits are negated."""
    return put_changed(tmp_path_factory.mktemp("other") / "model", "tiny-llama-other", scale=-1.0)


@pytest.fixture(scope="session")
def near_model(model_uri: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that differs by less than anybody notices."""
    return put_changed(tmp_path_factory.mktemp("near") / "model", "tiny-llama-near", scale=1.0005)


def put_changed(folder: Path, name: str, scale: float) -> str:
    """Put a copy of tiny-llama on the node whose final norm is scaled, which scales all logits."""
    from safetensors import torch as safetensors

    shutil.copytree(services.TINY_LLAMA, folder)
    weights = safetensors.load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * scale
    safetensors.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # the library makes it for its owner alone
    return services.put_model_on_node(name, folder)


def streams(base: str, count: int = STREAMS) -> AbstractContextManager[traffic.Traffic]:
    """Keep `count` streams of the same greedy prompt going until the block ends."""
    return traffic.steady(base, "tiny", count, TOKENS, PROMPT)


def answer(base: str) -> str:
    with openai.OpenAI(base_url=f"{base}/v1", api_key="none", timeout=120) as client:
        text, problem = traffic.ask_once(client, "tiny", PROMPT, TOKENS)
    assert problem == ""
    return text


def change(kubectl: Kubectl, name: str, **spec: object) -> None:
    kubectl.run("patch", "isvc", name, "--type=merge", "-p", json.dumps({"spec": spec}))


def model(uri: str) -> Object:
    return {"source": {"uri": uri}}


def progress(kubectl: Kubectl, name: str) -> str:
    return str(services.condition(kubectl.get("isvc", name), "Progressing").get("reason", ""))


def wait_progress(kubectl: Kubectl, name: str, reason: str, timeout: float) -> Object:
    """Wait until Progressing has that reason for the newest generation; returns the service."""

    def look() -> Object | None:
        found = kubectl.get("isvc", name)
        seen = services.condition(found, "Progressing")
        current = seen.get("observedGeneration") == (found or {}).get("metadata", {}).get("generation")
        return found if current and seen.get("reason") == reason else None

    try:
        return wait_for(f"{name}: Progressing by {reason}", look, timeout=timeout)
    except TimeoutError as error:
        raise TimeoutError(f"{error}; status: {services.status(kubectl, name)}") from None


def test_a_model_changes_under_32_streams(
    environment: Environment, kubectl: Kubectl, model_uri: str, other_model: str
) -> None:
    """No request fails, none is cut short, and every answer is wholly of one model or wholly of the other."""
    kubectl.apply(services.inference_service("tiny", model_uri, replicas=2))
    services.wait_ready(kubectl, "tiny", replicas=2)
    ready: list[int] = []

    def converged() -> bool:
        ready.append(services.status(kubectl, "tiny").get("readyReplicas", 0))
        return progress(kubectl, "tiny") == "Converged"

    with services.endpoint(environment, kubectl, "tiny") as base:
        before = answer(base)
        with streams(base) as seen:
            wait_for("answers of the old model", lambda: len(seen.texts) >= STREAMS, timeout=120)
            change(kubectl, "tiny", model=model(other_model))
            wait_for("the rollout to begin", lambda: progress(kubectl, "tiny") == "RollingOut", timeout=120)
            wait_for("the rollout to end", converged, timeout=420)
            answered = len(seen.texts)
            wait_for("answers of the new model", lambda: len(seen.texts) >= answered + STREAMS, timeout=120)
        after = answer(base)
    print(f"{len(seen.texts)} answers, {len(seen.failures)} failures, never fewer than {min(ready)} ready")
    assert seen.failures == []
    assert before != after
    assert set(seen.texts) == {before, after}
    assert min(ready) == 2
    assert progress(kubectl, "tiny") == "Converged"


def test_a_broken_model_is_rolled_back_and_says_why(kubectl: Kubectl, model_uri: str, tmp_path: Path) -> None:
    """The old replicas go on untouched; cause and remedy stay in the status; going back to the old spec heals it."""
    broken = tmp_path / "broken"
    shutil.copytree(services.TINY_LLAMA, broken)
    (broken / "model.safetensors").write_bytes(b"\x10" * 4096)
    uri = services.put_model_on_node("tiny-llama-broken", broken)
    kubectl.apply(services.inference_service("tiny", model_uri, replicas=2))
    services.wait_ready(kubectl, "tiny", replicas=2)
    before = {pod["metadata"]["uid"] for pod in services.pods(kubectl, "tiny")}
    change(kubectl, "tiny", model=model(uri))
    service = wait_progress(kubectl, "tiny", "RolledBack", timeout=150)
    assert services.condition(service, "Ready")["status"] == "True"
    degraded = services.condition(service, "Degraded")
    assert degraded["status"] == "True"
    assert "revision 2" in degraded["message"]
    failure = service["status"]["lastFailure"]
    print(failure)
    assert failure["cause"] in ("WeightsCorrupt", "ModelInvalid")
    assert failure["remedy"]
    assert {pod["metadata"]["uid"] for pod in services.pods(kubectl, "tiny")} == before
    events = {event["reason"] for event in kubectl.list("events") if event["involvedObject"]["name"] == "tiny"}
    assert "RolledBack" in events
    assert len(kubectl.list("controllerrevisions")) == 2
    change(kubectl, "tiny", model=model(model_uri))
    wait_progress(kubectl, "tiny", "Converged", timeout=60)
    assert {pod["metadata"]["uid"] for pod in services.pods(kubectl, "tiny")} == before


def test_golden_prompts_keep_a_model_out_that_answers_otherwise(
    environment: Environment, kubectl: Kubectl, model_uri: str, other_model: str, near_model: str
) -> None:
    """Before it takes any traffic; one that differs by less than the tolerance goes through."""
    rollout = {"autoRollback": {"goldenPrompts": ["Return a list of all header values."], "goldenTolerance": 0.1}}
    kubectl.apply(services.inference_service("tiny", model_uri, rollout=rollout))
    services.wait_ready(kubectl, "tiny")
    with services.endpoint(environment, kubectl, "tiny") as base:
        before = answer(base)
        with streams(base, 4) as seen:
            change(kubectl, "tiny", model=model(other_model))
            service = wait_progress(kubectl, "tiny", "RolledBack", timeout=150)
    assert seen.failures == []
    assert set(seen.texts) == {before}
    failure = service["status"]["lastFailure"]
    print(failure)
    assert failure["cause"] == "GoldenPromptsDiffer"
    assert "nats a token" in failure["message"]
    change(kubectl, "tiny", model=model(near_model))
    service = wait_progress(kubectl, "tiny", "Converged", timeout=150)
    assert services.condition(service, "Degraded")["status"] == "False"


def test_errors_of_a_new_revision_bring_the_old_one_back(
    environment: Environment, kubectl: Kubectl, model_uri: str
) -> None:
    """A setting that lets the engine start and has it refuse what waits: told with the numbers, and undone."""
    rollout = {"autoRollback": {"errorRate": 0.02}}
    kubectl.apply(services.inference_service("tiny", model_uri, rollout=rollout))
    services.wait_ready(kubectl, "tiny")
    old = services.status(kubectl, "tiny")["updateRevision"]
    with services.endpoint(environment, kubectl, "tiny") as base, streams(base, 8):
        change(kubectl, "tiny", engine={"extraArgs": ["--queue-timeout", "0.001"]})
        wait_progress(kubectl, "tiny", "RolledBack", timeout=180)
        services.wait_ready(kubectl, "tiny")
    failure = services.status(kubectl, "tiny")["lastFailure"]
    assert failure["cause"] == "MoreErrorsThanBefore"
    assert "requests of the last minute failed" in failure["message"]
    assert {pod["metadata"]["labels"]["kvasir.dev/revision"] for pod in services.pods(kubectl, "tiny")} == {old}


def test_pause_resume_and_going_back(kubectl: Kubectl, model_uri: str, other_model: str) -> None:
    """With kubectl alone: `spec.rollout.paused`, the history, and the annotation `kvasir.dev/rollback-to`."""
    kubectl.apply(services.inference_service("tiny", model_uri))
    services.wait_ready(kubectl, "tiny")
    [before] = services.pods(kubectl, "tiny")
    change(kubectl, "tiny", model=model(other_model), rollout={"paused": True})
    wait_progress(kubectl, "tiny", "RolloutPaused", timeout=30)
    time.sleep(10)
    assert [pod["metadata"]["uid"] for pod in services.pods(kubectl, "tiny")] == [before["metadata"]["uid"]]
    change(kubectl, "tiny", rollout={"paused": False})
    wait_progress(kubectl, "tiny", "Converged", timeout=150)
    kubectl.run("annotate", "isvc", "tiny", "kvasir.dev/rollback-to=previous")
    wait_progress(kubectl, "tiny", "RolledBack", timeout=150)
    [back] = services.pods(kubectl, "tiny")
    assert back["metadata"]["labels"]["kvasir.dev/revision"] == before["metadata"]["labels"]["kvasir.dev/revision"]
    kubectl.run("annotate", "isvc", "tiny", "kvasir.dev/rollback-to-")
    wait_progress(kubectl, "tiny", "Converged", timeout=150)


def test_draining_a_node_keeps_the_budget(environment: Environment, kubectl: Kubectl, model_uri: str) -> None:
    """`kubectl drain` evicts one of two replicas, under streams, and no more while there is no other place for it."""
    if not environment.own:
        pytest.skip("drains the only node of the cluster")
    rollout = {"maxUnavailable": 1}
    kubectl.apply(services.inference_service("tiny", model_uri, replicas=2, rollout=rollout))
    services.wait_ready(kubectl, "tiny", replicas=2)
    [budget] = kubectl.list("poddisruptionbudgets")
    assert budget["spec"]["minAvailable"] == 1
    [node] = {pod["spec"]["nodeName"] for pod in services.pods(kubectl, "tiny")}
    old = {pod["metadata"]["uid"] for pod in services.pods(kubectl, "tiny")}
    selector = f"{services.SERVICE_LABEL}=tiny"
    drain = kubectl.command("drain", node, f"--pod-selector={selector}", "--delete-emptydir-data", "--timeout=240s")
    with services.endpoint(environment, kubectl, "tiny") as base, streams(base, 8) as seen:
        wait_for("answers", lambda: len(seen.texts) >= 8, timeout=60)
        draining = subprocess.Popen(drain, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            wait_for("one eviction", lambda: len(old & serving(kubectl)) == 1, timeout=60)
            time.sleep(15)
            assert len(old & serving(kubectl)) == 1, "the budget was not kept"
        finally:
            kubectl.run("uncordon", node)
        said, _ = draining.communicate(timeout=250)
        assert draining.returncode == 0, said
        assert "would violate the pod's disruption budget" in said
        services.wait_ready(kubectl, "tiny", replicas=2)
        assert not old & serving(kubectl)
    print(said, f"{len(seen.texts)} answers")
    assert seen.failures == []


def serving(kubectl: Kubectl) -> set[str]:
    """Uids of pods of the service that are ready and not on their way out."""
    return {pod["metadata"]["uid"] for pod in services.pods(kubectl, "tiny") if services.is_ready(pod)}
