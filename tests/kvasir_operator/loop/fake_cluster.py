"""A cluster in memory for tests of the loop: the API server's rules, a kubelet, engines, and faults on request.

It stands in at the network's edge alone: the store, observation, planning and execution that run against it are the
real ones. Time moves only when a test moves it.
"""

import asyncio
import copy
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from kvasir_operator.api.base import format_time
from kvasir_operator.cluster import EVENTS, NODES, PODS, SERVICES_OF_OURS, Kind
from kvasir_operator.errors import ApiError, PodError
from kvasir_operator.planning.goldens import Scored
from kvasir_operator.planning.state import Unknown
from kvasir_operator.resources import names
from kvasir_runtime.contract.admin_api import (
    AdapterReport,
    AdapterReports,
    AdapterSet,
    AdminState,
    AnswerState,
    CapacityState,
    KVState,
    Phase,
    Prefix,
    PrefixList,
    StartupState,
    WantedAdapter,
    WarmupEnd,
    WarmupRequest,
    WarmupState,
)

Manifest = dict[str, Any]
Address = tuple[Kind, str, str]


class Died(BaseException):
    """The operator's process ended here. No handler of errors may catch it."""


@dataclass
class Clock:
    """Time that a test moves."""

    now: datetime = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@dataclass
class Engine:
    """One process in a pod."""

    boot_id: str
    phase: Phase = Phase.LOADING
    draining: bool = False
    inflight: int = 0
    answers: AnswerState | None = None
    query_tokens: int = 0
    value: float = 0.0
    hot: list[Prefix] = field(default_factory=list)
    warmed: list[WarmupRequest] = field(default_factory=list)
    told: AdapterSet = field(default_factory=lambda: AdapterSet(adapters=[]))
    puts: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    failed_at: dict[str, datetime] = field(default_factory=dict)
    serves: dict[str, str] = field(default_factory=dict)
    """Digests by adapter."""


@dataclass
class Faults:
    """What goes wrong, by a random number for each request; everything off by default."""

    random: Random = field(default_factory=lambda: Random(0))
    error_rate: float = 0.0
    silent_rate: float = 0.0
    die_after_writes: int | None = None

    def before_write(self) -> None:
        """A request that has no effect: refused, or the operator died before it was sent."""
        if self.random.random() < self.error_rate:
            status = self.random.choice([409, 429, 500, 0])
            raise ApiError(status, "Conflict" if status == 409 else "Fault", "injected")

    def after_write(self) -> None:
        """A request that has its effect, of which the operator never hears."""
        if self.die_after_writes is not None:
            self.die_after_writes -= 1
            if self.die_after_writes < 0:
                self.die_after_writes = None
                raise Died
        if self.random.random() < self.silent_rate:
            raise ApiError(0, "NoAnswer", "injected")


class FakeCluster:
    """The API server, the kubelet and the engines. Has the methods of `Cluster`."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.faults = Faults()
        self.objects: dict[Address, Manifest] = {}
        self.engines: dict[str, Engine] = {}
        self.watchers: list[Callable[[Kind, str, Manifest], None]] = []
        self.writes: list[str] = []
        self.reads: list[str] = []
        self.nodes: dict[str, int] = {"node": 1000}
        """How many pods fit on each node."""
        self.cordoned: set[str] = set()
        self.on_delete: Callable[[Manifest, Engine | None], None] = lambda pod, engine: None
        self._versions = itertools.count(1)
        self._uids = itertools.count(1)

    # --- The API, as `Cluster` has it

    async def pages(
        self, kind: Kind, namespace: str | None = None, *, metadata_only: bool = False, query: Any = None
    ) -> AsyncIterator[tuple[list[Manifest], str]]:
        yield [copy.deepcopy(each) for each in self.all(kind, namespace)], str(next(self._versions))

    async def get(self, kind: Kind, namespace: str, name: str) -> Manifest:
        self.reads.append(f"{kind.plural} {name}")
        return copy.deepcopy(self._find(kind, namespace, name))

    async def create(self, kind: Kind, namespace: str, body: Manifest, content_type: str = "") -> Manifest:
        address = (kind, namespace, body["metadata"]["name"])
        self._before("create", address)
        if address in self.objects:
            raise ApiError(409, "AlreadyExists", f"{address[2]} already exists")
        made = copy.deepcopy(body)
        made["metadata"] |= {
            "uid": f"uid-{next(self._uids)}",
            "namespace": namespace,
            "creationTimestamp": format_time(self.clock()),
        }
        if kind == PODS:
            made["status"] = {"phase": "Pending", "conditions": []}
        return self._after(self.store(address, made, "ADDED"))

    async def discover(self, kind: Kind) -> None:
        """There is one version of everything."""

    def version_of(self, kind: Kind) -> str:
        return kind.api_version

    async def apply(self, kind: Kind, namespace: str, body: Manifest) -> Manifest:
        address = (kind, namespace, body["metadata"]["name"])
        self._before("apply", address)
        found = self._find(*address)
        found |= {key: copy.deepcopy(value) for key, value in body.items() if key != "metadata"}
        return self._after(self.store(address, found, "MODIFIED"))

    async def patch(
        self, kind: Kind, namespace: str, name: str, body: Manifest, content_type: str, subresource: str | None = None
    ) -> Manifest:
        address = (kind, namespace, name)
        self._before("patch", address)
        found = copy.deepcopy(self._find(*address))
        uid = body.get("metadata", {}).get("uid")
        if uid not in (None, found["metadata"]["uid"]):
            raise ApiError(409, "Conflict", "the UID in the precondition differs")
        if kind == PODS:
            merge_conditions(found, body["status"]["conditions"])
            self._kubelet_ready(found)
        else:
            merge(found, body)
            found["metadata"]["generation"] = found["metadata"].get("generation", 0) + (subresource == "scale")
        return self._after(self.store(address, found, "MODIFIED"))

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str, grace_s: int | None = None) -> Manifest:
        address = (kind, namespace, name)
        self._before("delete", address)
        found = copy.deepcopy(self._find(*address))
        if found["metadata"]["uid"] != uid:
            raise ApiError(409, "Conflict", "the UID in the precondition differs")
        if kind != PODS:
            self.vanish(address)
            return self._after(found)
        self.on_delete(found, self.engines.get(uid))
        if not found.get("spec", {}).get("nodeName") or found["status"]["phase"] == "Failed":
            self.vanish(address)
            return self._after(found)
        found["metadata"]["deletionTimestamp"] = format_time(self.clock())
        self._kubelet_ready(found)
        return self._after(self.store(address, found, "MODIFIED"))

    # --- The cluster's own doings

    def all(self, kind: Kind, namespace: str | None = None) -> list[Manifest]:
        return [
            each for (found, where, _), each in self.objects.items() if found == kind and namespace in (None, where)
        ]

    def pods(self) -> list[Manifest]:
        return self.all(PODS)

    def store(self, address: Address, manifest: Manifest, change: str) -> Manifest:
        manifest["metadata"]["resourceVersion"] = str(next(self._versions))
        self.objects[address] = manifest
        self._tell(address[0], change, manifest)
        return copy.deepcopy(manifest)

    def vanish(self, address: Address) -> None:
        gone = self.objects.pop(address)
        gone["metadata"]["resourceVersion"] = str(next(self._versions))
        self.engines.pop(gone["metadata"]["uid"], None)
        self._tell(address[0], "DELETED", gone)

    def start_pod(self, pod: Manifest) -> None:
        """One step of a pod's start: a node, then a process, then a ready one."""
        changed = copy.deepcopy(pod)
        engine = self.engines.get(pod["metadata"]["uid"])
        if not changed["spec"].get("nodeName"):
            self._schedule(changed)
        elif engine is None:
            self._run(changed)
        elif engine.phase is Phase.LOADING:
            engine.phase = Phase.SERVING
            changed["status"]["containerStatuses"][0]["ready"] = True
            self._kubelet_ready(changed)
        else:
            return
        self.update(changed)

    def _schedule(self, pod: Manifest) -> None:
        """Give the pod the first node that has room, or say that there is none."""
        taken = [each["spec"].get("nodeName") for each in self.pods() if each["status"]["phase"] != "Failed"]
        free = [node for node, room in self.nodes.items() if taken.count(node) < room and node not in self.cordoned]
        placed = {"type": "PodScheduled", "status": "True" if free else "False"}
        if free:
            pod["spec"]["nodeName"] = free[0]
        else:
            placed["message"] = f"0/{len(self.nodes)} nodes are available: {len(self.nodes)} Insufficient cpu."
        before: Manifest = next((each for each in pod["status"]["conditions"] if each["type"] == "PodScheduled"), {})
        since = before.get("lastTransitionTime") if before.get("status") == placed["status"] else None
        merge_conditions(pod, [placed | {"lastTransitionTime": since or format_time(self.clock())}])

    def cordon(self, node: str, *, on: bool = True) -> None:
        """What `kubectl cordon` and `kubectl uncordon` do."""
        (self.cordoned.add if on else self.cordoned.discard)(node)
        metadata = {"name": node, "uid": node, "resourceVersion": str(next(self._versions))}
        self._tell(NODES, "MODIFIED", {"metadata": metadata, "spec": {"unschedulable": on}})

    def break_pod(self, pod: Manifest, *, restarts: int, message: str = "") -> None:
        """The process has ended so often, and the kubelet waits before it starts it again."""
        changed = copy.deepcopy(pod)
        self.engines.pop(pod["metadata"]["uid"], None)
        changed["spec"]["nodeName"] = changed["spec"].get("nodeName") or next(iter(self.nodes))
        ended = {"exitCode": 1, "reason": "Error", "message": message, "finishedAt": format_time(self.clock())}
        changed["status"]["containerStatuses"] = [
            {
                "name": "runtime",
                "ready": False,
                "restartCount": restarts,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": ended},
            }
        ]
        self._kubelet_ready(changed)
        self.update(changed)

    def crash(self, pod: Manifest) -> None:
        """The process ends and is started again in place."""
        if pod["metadata"]["uid"] not in self.engines:
            return
        changed = copy.deepcopy(pod)
        restarts = changed["status"]["containerStatuses"][0]["restartCount"] + 1
        self._run(changed)
        container = changed["status"]["containerStatuses"][0]
        ended = {"exitCode": 1, "reason": "Error", "finishedAt": format_time(self.clock())}
        container |= {"restartCount": restarts, "lastState": {"terminated": ended}}
        self._kubelet_ready(changed)
        self.update(changed)

    def fail(self, pod: Manifest) -> None:
        """The kubelet gives the pod up."""
        changed = copy.deepcopy(pod)
        self.engines.pop(pod["metadata"]["uid"], None)
        changed["status"] |= {"phase": "Failed", "reason": "Evicted"}
        ended = {"exitCode": 137, "finishedAt": format_time(self.clock())}
        changed["status"]["containerStatuses"] = [
            {"name": "runtime", "ready": False, "restartCount": 0, "state": {"terminated": ended}}
        ]
        self._kubelet_ready(changed)
        self.update(changed)

    def finish_deletions(self) -> None:
        """Containers of deleted pods end, and the pods go."""
        for pod in self.pods():
            if "deletionTimestamp" in pod["metadata"]:
                self.vanish(address_of(pod))

    def update(self, pod: Manifest) -> None:
        self.store(address_of(pod), pod, "MODIFIED")

    def _run(self, pod: Manifest) -> None:
        uid = pod["metadata"]["uid"]
        self.engines[uid] = Engine(f"boot-{next(self._uids)}")
        pod["status"] |= {
            "phase": "Running",
            "podIP": uid,
            "containerStatuses": [{"name": "runtime", "ready": False, "restartCount": 0, "state": {"running": {}}}],
        }

    def _kubelet_ready(self, pod: Manifest) -> None:
        """Ready is the containers' readiness and all gates, unless the pod is on its way out."""
        conditions = {each["type"]: each["status"] for each in pod["status"].get("conditions", [])}
        gates = [gate["conditionType"] for gate in pod["spec"].get("readinessGates", [])]
        containers = pod["status"].get("containerStatuses", [])
        ready = (
            bool(containers)
            and all(each["ready"] for each in containers)
            and all(conditions.get(gate) == "True" for gate in gates)
            and pod["status"]["phase"] == "Running"
        )
        merge_conditions(pod, [{"type": "Ready", "status": "True" if ready else "False"}])

    def _find(self, kind: Kind, namespace: str, name: str) -> Manifest:
        found = self.objects.get((kind, namespace, name))
        if found is None:
            raise ApiError(404, "NotFound", f"{name} not found")
        return found

    def _before(self, verb: str, address: Address) -> None:
        if address[0] != EVENTS:
            self.writes.append(f"{verb} {address[0].plural} {address[2]}")
        self.faults.before_write()

    def _after(self, answer: Manifest) -> Manifest:
        self.faults.after_write()
        return answer

    def _tell(self, kind: Kind, change: str, manifest: Manifest) -> None:
        for watcher in self.watchers:
            watcher(kind, change, copy.deepcopy(manifest))


class FakeScraper:
    """The operator ports of the engines. A pod's address is its uid."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.deaf: set[str] = set()
        self.sources: dict[str, str] = {}
        """What lies where: digests by address. What is not there cannot be loaded."""
        self.warmups: list[str] = []
        """How the next warmups go."""
        self.tokenizers: dict[str, str] = {}
        """Digests by revision, where they are not that of everybody."""
        self.slow: set[str] = set()
        """Addresses that never answer."""
        self.scores: dict[str, float] = {}
        """Log-probability that a revision gives every token of golden prompts."""

    async def state(self, ip: str, token: str) -> AdminState | Unknown:
        try:
            engine = self._engine(ip)
        except PodError as error:
            return Unknown(str(error))
        return AdminState(
            boot_id=engine.boot_id,
            model_digest="d",
            tokenizer_digest=self._tokenizer(ip),
            revision="r",
            draining=engine.draining,
            inflight=engine.inflight,
            waiting=0,
            running=engine.inflight,
            answers=engine.answers,
            kv=KVState(
                block_size=16,
                blocks_total=100,
                blocks_active=engine.inflight,
                blocks_cached=0,
                query_tokens=engine.query_tokens,
                value=engine.value,
            ),
            startup=StartupState(phase=engine.phase),
            capacity=self._capacity(ip) if engine.phase is Phase.SERVING else None,
        )

    def _tokenizer(self, ip: str) -> str:
        pod = next(each for each in self.cluster.pods() if each["metadata"]["uid"] == ip)
        return self.tokenizers.get(pod["metadata"]["labels"].get(names.REVISION_LABEL, ""), "t")

    def _capacity(self, ip: str) -> CapacityState:
        pod = next(each for each in self.cluster.pods() if each["metadata"]["uid"] == ip)
        lora = "--enable-lora" in pod["spec"].get("containers", [{}])[0].get("args", [])
        return CapacityState(kv_tokens=1600, max_adapters=4 if lora else 0)

    async def tell_adapters(self, ip: str, token: str, wanted: AdapterSet) -> None:
        """Adapters load at once, or fail."""
        engine = self._engine(ip)
        before = {each.name: each for each in engine.told.adapters}
        engine.told, engine.puts = wanted, engine.puts + 1
        engine.serves = {each.name: engine.serves.get(each.name, "") for each in wanted.adapters}
        for each in wanted.adapters:
            same = before.get(each.name) == each and engine.serves[each.name] and each.name not in engine.failures
            if not same and each.uri not in self.slow:
                self._load(engine, each)

    def _load(self, engine: Engine, wanted: WantedAdapter) -> None:
        if wanted.uri in self.sources:
            engine.serves[wanted.name] = self.sources[wanted.uri]
            engine.failures.pop(wanted.name, None)
        else:
            engine.failures[wanted.name] = engine.failures.get(wanted.name, 0) + 1
            engine.failed_at[wanted.name] = self.cluster.clock()

    async def adapters(self, ip: str, token: str) -> AdapterReports | Unknown:
        try:
            engine = self._engine(ip)
        except PodError as error:
            return Unknown(str(error))
        reports = [self._report(engine, each) for each in engine.told.adapters]
        return AdapterReports(boot_id=engine.boot_id, tag=engine.told.tag, adapters=reports)

    def _report(self, engine: Engine, wanted: WantedAdapter) -> AdapterReport:
        failures = engine.failures.get(wanted.name, 0)
        digest = engine.serves[wanted.name]
        since = self.cluster.clock() - engine.failed_at.get(wanted.name, self.cluster.clock())
        return AdapterReport(
            name=wanted.name,
            uri=wanted.uri,
            state="failed" if failures else "loaded" if digest else "loading",
            digest=digest,
            cause="SourceUnreachable" if failures else "",
            message="nobody answers" if failures else "",
            failures=failures,
            failed_for_s=since.total_seconds(),
        )

    async def prefixes(self, ip: str, token: str, count: int, max_tokens: int, *, salted: bool) -> PrefixList:
        hot = self._engine(ip).hot
        return PrefixList(prefixes=[each for each in hot if salted or not each.cache_salt][:count])

    async def warm_up(self, ip: str, token: str, request: WarmupRequest) -> WarmupState:
        """As `warmups` says: an error, a hang that the client ends, or all is computed at once."""
        engine = self._engine(ip)
        engine.warmed.append(request)
        how = self.warmups.pop(0) if self.warmups else "well"
        if how == "error":
            raise PodError(500, "/admin/warmup: HTTP 500")
        if how == "busy":
            raise PodError(409, "/admin/warmup: HTTP 409")
        if how == "hangs":
            await asyncio.Event().wait()
        return WarmupState(
            boot_id="another" if how == "lies" else engine.boot_id,
            ended=WarmupEnd.TIME_BUDGET if how == "slow" else WarmupEnd.DONE,
            prompts=len(request.prompts),
            computed_tokens=sum(len(each.token_ids or [0]) for each in request.prompts),
            cached_tokens=0,
            pinned_tokens=0,
            seconds=1.5,
        )

    async def drain(self, ip: str, token: str, timeout_s: float) -> None:
        self._engine(ip).draining = True

    async def undrain(self, ip: str, token: str) -> None:
        self._engine(ip).draining = False

    async def score(self, ip: str, token: str, model: str, prompt: str) -> Scored:
        self._engine(ip)
        pod = next(each for each in self.cluster.pods() if each["metadata"]["uid"] == ip)
        value = self.scores.get(pod["metadata"]["labels"][names.REVISION_LABEL], -1.0)
        tokens = tuple(prompt.split())
        return Scored(tokens, (None, *[value] * (len(tokens) - 1)))

    def _engine(self, ip: str) -> Engine:
        engine = self.cluster.engines.get(ip)
        if engine is None or ip in self.deaf:
            raise PodError(0, "no answer")
        return engine


def address_of(pod: Manifest) -> Address:
    return PODS, pod["metadata"]["namespace"], pod["metadata"]["name"]


def merge(target: Manifest, patch: Manifest) -> None:
    """A merge patch (RFC 7386), in place."""
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict) and isinstance(target.get(key), dict):
            merge(target[key], value)
        else:
            target[key] = copy.deepcopy(value)


def merge_conditions(pod: Manifest, conditions: list[Manifest]) -> None:
    """Merge by type, as a strategic merge patch does."""
    found = {each["type"]: each for each in pod["status"].get("conditions", [])}
    for condition in conditions:
        found[condition["type"]] = {**found.get(condition["type"], {}), **condition}
    pod["status"]["conditions"] = list(found.values())


def inference_service(name: str = "tiny", **spec: Any) -> Manifest:
    """An InferenceService as a user applies it."""
    return {
        "metadata": {"name": name, "namespace": "team", "uid": f"{name}-uid", "generation": 1},
        "spec": {"model": {"source": {"uri": "pvc://models/m"}}, "accelerator": {"vendor": "cpu"}} | spec,
    }


def service_address(name: str = "tiny") -> Address:
    return SERVICES_OF_OURS, "team", name
