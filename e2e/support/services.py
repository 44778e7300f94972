"""InferenceServices in tests: written, awaited, called and inspected."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from e2e.support.environment import ROOT, Environment
from e2e.support.kubectl import Kubectl, Object
from e2e.support.waiting import wait_for

API_VERSION = "kvasir.dev/v1alpha1"
NODE_MODELS = Path("/var/lib/kvasir/models")
"""Folder of the node from which the local overlay lets services take models."""
TINY_LLAMA = ROOT / "tests" / "models" / "tiny-llama"
SERVICE_LABEL = "kvasir.dev/service"
REPLICA = "app.kubernetes.io/component=runtime"
"""Label of pods that run the engine."""


def put_model_on_node(name: str = "tiny-llama", source: Path = TINY_LLAMA) -> str:
    """Copy a model to the folder of this machine that pods may mount; returns its `file://` address."""
    target = NODE_MODELS / name
    shutil.copytree(source, target, dirs_exist_ok=True)
    return f"file://{target}"


def processes_of(pod: Object) -> dict[int, str]:
    """Processes of a pod as this machine, its node, sees them: pid and command line, without the pause process.

    A process in a container can neither kill nor stop its own process 1, so the signal must come from the node.
    """
    found: dict[int, str] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and pod["metadata"]["uid"] in _read(folder / "cgroup"):
            command = _read(folder / "cmdline").replace("\0", " ").strip()
            if "python" in command or "kvasir" in command:
                found[int(folder.name)] = command
    return found


def _read(path: Path) -> str:
    """The text of a file of /proc; empty when its process has ended meanwhile."""
    try:
        return path.read_text()
    except OSError:
        return ""


def inference_service(name: str, uri: str, **spec: Any) -> Object:
    """A small service on CPU; `spec` adds to it or replaces parts of it."""
    return {
        "apiVersion": API_VERSION,
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {
            "model": {"source": {"uri": uri}, "maxModelLen": 1024},
            "engine": {"kvCacheMemory": "64Mi", "maxNumSeqs": 16},
            "accelerator": {"vendor": "cpu"},
            "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "1536Mi"}},
            "replicas": 1,
        }
        | spec,
    }


def condition(service: Object | None, kind: str) -> Object:
    """The condition of that type; empty if it is not there."""
    conditions = ((service or {}).get("status") or {}).get("conditions") or []
    return next((dict(each) for each in conditions if each["type"] == kind), {})


def status(kubectl: Kubectl, name: str) -> Object:
    return dict((kubectl.get("isvc", name) or {}).get("status") or {})


def pods(kubectl: Kubectl, name: str) -> list[Object]:
    """Replicas of the service that are not on their way out."""
    found = kubectl.list("pods", f"{SERVICE_LABEL}={name},{REPLICA}")
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


def is_ready(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def wait_ready(kubectl: Kubectl, name: str, replicas: int = 1, timeout: float = 120) -> Object:
    """Wait until the service is Ready with exactly so many ready replicas; returns it."""

    def look() -> Object | None:
        service = kubectl.get("isvc", name)
        seen = (service or {}).get("status") or {}
        settled = seen.get("readyReplicas") == replicas and seen.get("replicas") == replicas
        return service if settled and condition(service, "Ready").get("status") == "True" else None

    try:
        return wait_for(f"{name} Ready with {replicas} replicas", look, timeout=timeout)
    except TimeoutError as error:
        raise TimeoutError(f"{error}; status: {status(kubectl, name)}") from None


def wait_condition(kubectl: Kubectl, name: str, kind: str, value: str, *words: str, timeout: float) -> Object:
    """Wait until a condition has that status and its message all the words; returns it."""

    def look() -> Object | None:
        found = condition(kubectl.get("isvc", name), kind)
        says_so = all(word in found.get("message", "") for word in words)
        return found if found.get("status") == value and says_so else None

    try:
        return wait_for(f"{name}: {kind}={value} with {words}", look, timeout=timeout)
    except TimeoutError as error:
        raise TimeoutError(f"{error}; status: {status(kubectl, name)}") from None


@contextmanager
def endpoint(environment: Environment, kubectl: Kubectl, name: str) -> Iterator[str]:
    """The base address of the service as seen from here: its cluster address, or a forwarded port elsewhere."""
    service = kubectl.get("service", name)
    assert service is not None, f"no Service {name}"
    if environment.own:
        yield f"http://{service['spec']['clusterIP']}:{service['spec']['ports'][0]['port']}"
        return
    with kubectl.background("port-forward", f"service/{name}", ":8000") as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        port = re.search(r":(\d+) ->", line)
        assert port is not None, line
        yield f"http://127.0.0.1:{port[1]}"


LEFTOVER_KINDS = (
    "pods,services,secrets,configmaps,endpoints,controllerrevisions.apps,poddisruptionbudgets.policy,"
    "leases.coordination.k8s.io"
)


def wait_gone(kubectl: Kubectl, name: str, timeout: float = 90) -> None:
    """Wait until no object of the service is left."""

    def look() -> str | None:
        left = kubectl.run("get", LEFTOVER_KINDS, "-l", f"{SERVICE_LABEL}={name}", "-o", "name").split()
        left += kubectl.run("get", "isvc,service,endpoints", name, "-o", "name", "--ignore-not-found").split()
        return None if left else "nothing left"

    wait_for(f"everything of {name} to go", look, timeout=timeout)
