"""A test double of the kubelet and of the engines: pods on API-only nodes become Ready, and answer on port 8001.

What a kubelet writes of a pod that starts at once: one status when its containers run and are ready, one when its
readiness gates are open too; what is deleted goes at once. Pods get addresses of a network that this machine answers
on as a whole, where every address is an engine that serves and has nothing to do.

    python -m e2e.bench_operator.kubelet --kubeconfig FILE
"""

import argparse
import asyncio
import datetime as dt
import ipaddress
import itertools
import json
import logging
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvloop
from aiohttp import web

from e2e.bench_operator.api import STRATEGIC_PATCH, ApiFailureError, BenchApi, Object
from kvasir_operator.resources import names
from kvasir_runtime.contract.admin_api import AdminState, CapacityState, KVState, Phase, StartupState
from kvasir_runtime.contract.memory import ModelShape
from kvasir_runtime.contract.model_report import ModelReport

log = logging.getLogger("kubelet")

NETWORK = "10.250.0.0/16"
"""Addresses of pods. `ip route add local NETWORK dev lo` has the machine answer on all of them."""
MODEL = Path(__file__).parent.parent.parent / "tests" / "models" / "tiny-llama"
WORKERS = 16
"""Statuses that are written at the same time."""


def next_write(pod: Object, address: str) -> Object | None:
    """The status that a kubelet would write now; None when there is nothing to say.

    >>> next_write({"metadata": {}, "spec": {}, "status": {}}, "10.250.0.1") is None
    True
    """
    status = pod.get("status") or {}
    if not pod["spec"].get("nodeName") or "deletionTimestamp" in pod["metadata"]:
        return None
    if pod["metadata"]["labels"].get(names.COMPONENT_LABEL) == names.INSPECTION_COMPONENT:
        return _inspected(pod) if status.get("phase") == "Pending" else None
    conditions = {each["type"]: each["status"] for each in status.get("conditions") or []}
    gates = [gate["conditionType"] for gate in pod["spec"].get("readinessGates") or []]
    ready = "True" if all(conditions.get(gate) == "True" for gate in gates) else "False"
    if not status.get("podIP"):
        return _running(pod, address, ready)
    if conditions.get("Ready") != ready:
        return {"conditions": [_condition("Ready", ready, _now())]}
    return None


def _inspected(pod: Object) -> Object:
    """The end of a pod that looked at a model, with what `kvasir-runtime inspect --report` leaves."""
    now = _now()
    shape = ModelShape.from_hf_config(json.loads((MODEL / "config.json").read_text()))
    ended = {"exitCode": 0, "reason": "Completed", "startedAt": now, "finishedAt": now}
    ended["message"] = ModelReport(shape, "LlamaForCausalLM").to_json()
    containers = [_container(each, pod["metadata"]["uid"], now) for each in pod["spec"]["containers"]]
    states = [each | {"ready": False, "started": False, "state": {"terminated": ended}} for each in containers]
    return {"phase": "Succeeded", "startTime": now, "containerStatuses": states}


def _running(pod: Object, address: str, ready: str) -> Object:
    now = _now()
    containers = pod["spec"]["containers"]
    wanted = {"Initialized": "True", "ContainersReady": "True", "Ready": ready}
    return {
        "phase": "Running",
        "hostIP": "10.250.255.254",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": now,
        "conditions": [_condition(kind, status, now) for kind, status in wanted.items()],
        "containerStatuses": [_container(each, pod["metadata"]["uid"], now) for each in containers],
    }


def _container(container: Object, uid: str, now: str) -> Object:
    return {
        "name": container["name"],
        "image": container["image"],
        "imageID": "",
        "containerID": f"double://{uid}/{container['name']}",
        "ready": True,
        "started": True,
        "restartCount": 0,
        "state": {"running": {"startedAt": now}},
    }


def _condition(kind: str, status: str, now: str) -> Object:
    return {"type": kind, "status": status, "lastTransitionTime": now, "lastProbeTime": None}


def _now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def addresses(network: str) -> Iterator[str]:
    """Host addresses, one after the other.

    >>> next(addresses("10.250.0.0/16"))
    '10.250.0.1'
    """
    return map(str, ipaddress.ip_network(network).hosts())


class Kubelet:
    """Follows the pods; a pod that changes while its status is written is looked at again afterwards."""

    def __init__(self, api: BenchApi) -> None:
        self._api = api
        self._free = addresses(NETWORK)
        self._pods: dict[str, Object] = {}
        self._addresses: dict[str, str] = {}
        self._due: asyncio.Queue[str] = asyncio.Queue()

    async def run(self) -> None:
        """Play the kubelet, for ever; raises what ends it."""
        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(self._work())
            async for change, pod in self._api.follow("/api/v1/pods", names.SERVICE_LABEL):
                self._notice(change, pod)

    def _notice(self, change: str, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        if change == "DELETED":
            self._pods.pop(uid, None)
            return
        self._pods[uid] = pod
        if pod["spec"].get("nodeName"):
            self._due.put_nowait(uid)

    async def _work(self) -> None:
        while True:
            pod = self._pods.get(await self._due.get())
            if pod is None:
                continue
            metadata = pod["metadata"]
            path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
            try:
                await self._write(path, pod)
            except ApiFailureError as error:
                if error.status not in (404, 409):
                    raise

    async def _write(self, path: str, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        if "deletionTimestamp" in pod["metadata"]:
            await self._api.request("DELETE", path, {"gracePeriodSeconds": 0, "preconditions": {"uid": uid}})
            return
        address = self._addresses.get(uid) or self._addresses.setdefault(uid, next(self._free))
        status = next_write(pod, address)
        if status is not None:
            body = {"metadata": {"uid": uid}, "status": status}
            self._pods[uid] = await self._api.request("PATCH", path + "/status", body, STRATEGIC_PATCH)
            self._due.put_nowait(uid)  # it may have changed meanwhile


def engine_state(address: str) -> bytes:
    """What an idle engine at that address says of itself."""
    state = AdminState(
        boot_id=f"boot-{address}",
        model_digest="0" * 64,
        revision="",
        draining=False,
        inflight=0,
        waiting=0,
        running=0,
        kv=KVState(block_size=16, blocks_total=4096, blocks_active=0, blocks_cached=0),
        startup=StartupState(phase=Phase.SERVING, seconds={"loading": 1.0}, progress=1.0),
        capacity=CapacityState(weights_bytes=1 << 30, kv_bytes_per_token=1 << 15, kv_tokens=65536),
    )
    return state.model_dump_json().encode()


def make_engines() -> web.Application:
    """The operator port of every engine at once: which one is asked shows in the local address."""
    known: dict[str, bytes] = {}

    async def state(request: web.Request) -> web.Response:
        local = request.transport.get_extra_info("sockname")[0] if request.transport else ""
        body = known.get(local) or known.setdefault(local, engine_state(local))
        return web.Response(body=body, content_type="application/json")

    async def drained(_: web.Request) -> web.Response:
        return web.Response(text=json.dumps({"draining": True, "inflight": 0}), content_type="application/json")

    app = web.Application()
    app.add_routes([web.get("/admin/state", state), web.post("/admin/drain", drained)])
    return app


async def play(kubeconfig: Path) -> None:
    """Answer as engines and kubelet until a signal comes."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # Idle connections are kept as long as the runtime keeps them.
    runner = web.AppRunner(make_engines(), access_log=None, keepalive_timeout=75, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "0.0.0.0", names.ADMIN_PORT, backlog=4096).start()
    async with BenchApi.opened(kubeconfig) as api:
        playing = asyncio.create_task(Kubelet(api).run())
        stopped: asyncio.Task[Any] = asyncio.create_task(stop.wait())
        print("ready", flush=True)
        for task in itertools.chain((await asyncio.wait({playing, stopped}, return_when="FIRST_COMPLETED"))[0]):
            task.result()
        playing.cancel()
    await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kubeconfig", required=True, type=Path, help="whose user may write pods' status")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    uvloop.run(play(arguments.kubeconfig))


if __name__ == "__main__":
    main()
