"""What replicas have in common: adapters that change under load, and prefixes that a new replica starts with."""

import base64
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import openai
import pytest

from e2e.support import services, traffic
from e2e.support.environment import Environment
from e2e.support.kubectl import Kubectl, Object
from e2e.support.waiting import wait_for
from kvasir_operator.fleet.prefix_codec import decode

ADAPTERS = services.NODE_MODELS / "fleet-adapters"
STREAMS = 32
TOKENS = 48
PROMPT = "Return a list of"
SHARED = "You are asked about the functions of a library. Answer in one sentence, and name the types. " * 4


@pytest.fixture
def voice(model_uri: str) -> Iterator[Path]:
    """A link to the first version of an adapter, on the node; the other version lies beside it."""
    for version in ("pirate", "legal"):
        shutil.copytree(services.TINY_LLAMA.with_name(f"tiny-llama-{version}"), ADAPTERS / version, dirs_exist_ok=True)
    link = ADAPTERS / "voice"
    link.unlink(missing_ok=True)
    link.symlink_to("pirate")
    yield link
    link.unlink()


def point(link: Path, target: str) -> None:
    """Lead a link elsewhere in one step."""
    new = link.with_name("next")
    new.symlink_to(target)
    new.rename(link)


def adapter(kubectl: Kubectl, name: str) -> Object:
    rows = services.status(kubectl, "tiny").get("adapters") or []
    return next((dict(row) for row in rows if row["name"] == name), {})


def change(kubectl: Kubectl, **spec: object) -> None:
    kubectl.run("patch", "isvc", "tiny", "--type=merge", "-p", json.dumps({"spec": spec}))


@contextmanager
def client(base: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{base}/v1", api_key="none", timeout=60, max_retries=0) as made:
        yield made


def test_adapters_change_under_32_streams(
    environment: Environment, kubectl: Kubectl, model_uri: str, voice: Path
) -> None:
    """No request fails and no answer is stale; one that is broken says why and takes nothing down."""
    spec = [{"name": name, "source": {"uri": f"file://{ADAPTERS}/{name}"}} for name in ("voice", "broken")]
    kubectl.apply(services.inference_service("tiny", model_uri, replicas=2, adapters=spec))
    services.wait_ready(kubectl, "tiny", replicas=2)
    first = wait_for("the adapter on both", lambda: _served(kubectl, replicas=2), timeout=30)["digest"]
    broken = adapter(kubectl, "broken")
    print(broken)
    assert (broken["cause"], broken.get("readyReplicas", 0)) == ("AdapterInvalid", 0)
    assert services.condition(kubectl.get("isvc", "tiny"), "AdaptersReady")["reason"] == "AdapterInvalid"
    before = {pod["metadata"]["uid"] for pod in services.pods(kubectl, "tiny")}
    with services.endpoint(environment, kubectl, "tiny") as base, client(base) as asked:
        old, problem = traffic.ask_once(asked, "voice", PROMPT, TOKENS)
        assert problem == ""
        with traffic.steady(base, "voice", STREAMS, TOKENS, PROMPT) as seen:
            wait_for("answers of the old version", lambda: len(seen.texts) >= STREAMS, timeout=60)
            point(voice, "legal")
            kubectl.run("annotate", "isvc", "tiny", "kvasir.dev/adapters-version=2")
            wait_for("the new version on both", lambda: _served(kubectl, replicas=2, other_than=first), timeout=60)
            answered = len(seen.texts)
            wait_for("answers of the new version", lambda: len(seen.texts) >= answered + STREAMS, timeout=60)
        new, problem = traffic.ask_once(asked, "voice", PROMPT, TOKENS)
        assert problem == ""
        stale = [text for text in seen.texts[answered + STREAMS :] if text != new]
        print(f"{len(seen.texts)} answers, {len(seen.failures)} failures, {len(stale)} stale")
        assert (seen.failures, stale) == ([], [])
        assert old != new
        assert set(seen.texts) == {old, new}
        change(kubectl, adapters=spec[1:])
        wait_for("the adapter to go", lambda: adapter(kubectl, "voice") == {}, timeout=30)
        wait_for("its name to go", lambda: "voice" not in {model.id for model in asked.models.list()}, timeout=30)
    assert {pod["metadata"]["uid"] for pod in services.pods(kubectl, "tiny")} == before


def _served(kubectl: Kubectl, replicas: int, other_than: str = "") -> Object | None:
    found = adapter(kubectl, "voice")
    return found if found.get("updatedReplicas") == replicas and found["digest"] != other_than else None


def test_a_new_replica_starts_with_what_the_others_are_asked_for(
    environment: Environment, kubectl: Kubectl, model_uri: str
) -> None:
    """After a scale-up, and after a crash; its first request finds the shared prefix."""
    warmup = {"promptsFrom": {"configMap": "prompts", "key": "first"}, "fromTraffic": {}}
    prompts = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "prompts"},
        "data": {"first": "def main():"},
    }
    kubectl.apply(prompts, services.inference_service("tiny", model_uri, warmup=warmup))
    services.wait_ready(kubectl, "tiny")
    [pod] = services.pods(kubectl, "tiny")
    assert gate(pod)["reason"] == "Warmed"
    assert " 0 tokens computed" not in gate(pod)["message"]
    with services.endpoint(environment, kubectl, "tiny") as base, client(base) as asked:
        for index in range(12):
            asked.completions.create(model="tiny", prompt=f"{SHARED} {index}", max_tokens=1, temperature=0)
    kubectl.run("annotate", "isvc", "tiny", "example.com/looked-at=now")  # an idle service is looked at once a minute
    wait_for("prefixes to be kept", lambda: _kept(kubectl), timeout=130)
    change(kubectl, replicas=2)
    services.wait_ready(kubectl, "tiny", replicas=2)
    [new] = [each for each in services.pods(kubectl, "tiny") if each["metadata"]["uid"] != pod["metadata"]["uid"]]
    print(gate(new), services.status(kubectl, "tiny").get("warmup"))
    assert gate(new)["reason"] == "Warmed"
    if not environment.own:
        return
    assert first_hit(new) >= 32
    pids = [pid for pid, command in services.processes_of(new).items() if "serve" in command]
    os.kill(min(pids), signal.SIGKILL)
    name = new["metadata"]["name"]
    again = wait_for(
        "the crashed replica to be warm", lambda: _warm_again(kubectl, name, gate(new)["message"]), timeout=90
    )
    assert first_hit(again) >= 32
    version = _version(kubectl)
    wait_for("prefixes to be kept once more", lambda: _version(kubectl) != version, timeout=130)


def _version(kubectl: Kubectl) -> str:
    return str((kubectl.get("secret", "tiny-prefixes") or {})["metadata"]["resourceVersion"])


def gate(pod: Object) -> Object:
    """The condition of the gate `kvasir.dev/warm`."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    return next((dict(each) for each in conditions if each["type"] == "kvasir.dev/warm"), {})


def first_hit(pod: Object) -> int:
    """Ask one replica something that begins as others did: prompt tokens that its cache had."""
    with client(f"http://{pod['status']['podIP']}:8000") as asked:
        answer = asked.completions.create(model="tiny", prompt=f"{SHARED} anew", max_tokens=1, temperature=0)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    return answer.usage.prompt_tokens_details.cached_tokens or 0


def _kept(kubectl: Kubectl) -> bool:
    secret = kubectl.get("secret", "tiny-prefixes")
    found = [decode(base64.b64decode(text), datetime.now(UTC)) for text in ((secret or {}).get("data") or {}).values()]
    return any(each is not None and any(len(one.token_ids) >= 32 for one in each.prefixes) for each in found)


def _warm_again(kubectl: Kubectl, name: str, before: str) -> Object | None:
    pod = kubectl.get("pod", name)
    is_new = pod is not None and gate(pod).get("reason") == "Warmed" and gate(pod)["message"] != before
    return pod if is_new and pod is not None and services.is_ready(pod) else None
