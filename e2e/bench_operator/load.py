"""The load: many InferenceServices made at once, and when each of them became Ready."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from e2e.bench_operator.api import BenchApi, Object
from e2e.cluster.nodes import API_ONLY
from e2e.cluster.progress import Step
from kvasir_operator.api.v1alpha1 import API_VERSION, PLURAL

NAMESPACES: Final = 10
CREATORS: Final = 8
"""Services that are being created at the same time."""
COLLECTION: Final = f"/apis/{API_VERSION}"


def namespaces() -> list[str]:
    return [f"bench-{number}" for number in range(NAMESPACES)]


def service(name: str) -> Object:
    """A service of one replica on CPUs that only the nodes without machines take."""
    return {
        "apiVersion": API_VERSION,
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {
            "model": {"source": {"uri": "https://models.example/tiny.tar"}, "maxModelLen": 1024},
            "engine": {"kvCacheMemory": "64Mi"},
            "accelerator": {"vendor": "cpu"},
            "resources": {"requests": {"cpu": "1m", "memory": "1Mi"}, "limits": {"memory": "2Gi"}},
            "nodeSelector": {API_ONLY: "true"},
            "tolerations": [{"key": API_ONLY, "operator": "Exists"}],
            "replicas": 1,
        },
    }


def addresses(count: int) -> Iterator[tuple[str, str]]:
    """Namespace and name of each service, the namespaces in turn."""
    spaces = namespaces()
    for number in range(count):
        yield spaces[number % len(spaces)], f"service-{number:05d}"


@dataclass
class Times:
    """Seconds on one clock: when creation began, when each service was asked for, when it was seen Ready."""

    began: float = 0.0
    created: dict[tuple[str, str], float] = field(default_factory=dict)
    ready: dict[tuple[str, str], float] = field(default_factory=dict)

    @property
    def all_ready_s(self) -> float:
        """From the first request to the last service that became Ready."""
        return max(self.ready.values(), default=self.began) - self.began

    @property
    def all_created_s(self) -> float:
        return max(self.created.values()) - self.began

    @property
    def latencies_s(self) -> list[float]:
        """For each service the time from its creation to its readiness."""
        return [at - self.created[key] for key, at in self.ready.items()]


async def prepare(api: BenchApi) -> None:
    """The namespaces, each ready to run pods."""
    for name in namespaces():
        await api.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    for name in namespaces():
        await _account(api, name)


async def _account(api: BenchApi, namespace: str) -> None:
    """Wait for the default service account, without which pods are refused."""
    async with asyncio.timeout(30):
        async for _, account in api.follow(f"/api/v1/namespaces/{namespace}/serviceaccounts"):
            if account["metadata"]["name"] == "default":
                return


async def apply(api: BenchApi, count: int, timeout_s: float, step: Step) -> Times:
    """Create `count` services and wait until all are Ready, or until time is over: `ready` tells how many were."""
    times = Times()
    watching = asyncio.create_task(_watch(api, times, count, step))
    times.began = time.monotonic()
    try:
        async with asyncio.timeout(timeout_s):
            await _create_all(api, count, times)
            await watching
    except TimeoutError:
        step.update(f"{len(times.ready)} of {count} Ready after {timeout_s:g} s: time is over")
    finally:
        watching.cancel()
    return times


async def _create_all(api: BenchApi, count: int, times: Times) -> None:
    wanted = addresses(count)

    async def create() -> None:
        for namespace, name in wanted:
            times.created[namespace, name] = time.monotonic()
            await api.request("POST", f"{COLLECTION}/namespaces/{namespace}/{PLURAL}", service(name))

    async with asyncio.TaskGroup() as group:
        for _ in range(CREATORS):
            group.create_task(create())


async def _watch(api: BenchApi, times: Times, count: int, step: Step) -> None:
    async for _, found in api.follow(f"{COLLECTION}/{PLURAL}"):
        if _is_ready(found):
            key = found["metadata"]["namespace"], found["metadata"]["name"]
            times.ready.setdefault(key, time.monotonic())
            step.update(f"{len(times.ready)} of {count} Ready after {time.monotonic() - times.began:.0f} s")
        if len(times.ready) == count:
            return


def _is_ready(found: Object) -> bool:
    conditions = (found.get("status") or {}).get("conditions") or []
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
