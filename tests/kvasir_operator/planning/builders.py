"""Snapshots and pods for tests of decisions: what is not said is a healthy service with one replica."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from kvasir_operator.api.v1alpha1 import InferenceService, InferenceServiceStatus
from kvasir_operator.fleet.adapters import wishes_of
from kvasir_operator.planning.revisions import Revision
from kvasir_operator.planning.state import (
    Container,
    ObjectState,
    Pod,
    PodCondition,
    PodPhase,
    Snapshot,
    Stage,
    Termination,
    Unknown,
)
from kvasir_operator.resources import names
from kvasir_operator.resources.template_hash import RevisionTemplate
from kvasir_operator.settings import Settings
from kvasir_runtime.contract.admin_api import AdapterState, AdminState, CapacityState, KVState, Phase, StartupState

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SILENT = Unknown("no answer")


def service(**spec: Any) -> InferenceService:
    """A typed InferenceService named `tiny`; `spec` is given as in YAML."""
    manifest = {
        "metadata": {"name": "tiny", "namespace": "team", "uid": "service-uid", "generation": 3},
        "spec": {"model": {"source": {"uri": "pvc://models/tiny"}}, "accelerator": {"vendor": "cpu"}} | spec,
    }
    return InferenceService.from_manifest(manifest)


def engine(
    phase: Phase = Phase.SERVING,
    *,
    boot: str = "boot-1",
    draining: bool = False,
    inflight: int = 0,
    value: float = 0.0,
    active: int = 0,
    progress: float = 1.0,
    kv_tokens: int = 1600,
    max_adapters: int = 0,
    adapters: Iterable[AdapterState] = (),
) -> AdminState:
    """What an engine says of itself."""
    return AdminState(
        boot_id=boot,
        model_digest="d",
        revision="new",
        draining=draining,
        inflight=inflight,
        waiting=0,
        running=inflight,
        kv=KVState(block_size=16, blocks_total=100, blocks_active=active, blocks_cached=0, value=value),
        startup=StartupState(phase=phase, progress=progress),
        capacity=None
        if phase is Phase.LOADING
        else CapacityState(weights_bytes=2**20, kv_bytes_per_token=512, kv_tokens=kv_tokens, max_adapters=max_adapters),
        adapters=list(adapters),
    )


def gates(boot: str = "boot-1", since: datetime = NOW) -> dict[str, PodCondition]:
    """All gates open for that process."""
    return {gate: PodCondition("True", "Serving", f"boot {boot}", since) for gate in names.GATES}


def closed(reason: str, since: datetime = NOW, message: str = "") -> dict[str, PodCondition]:
    """The serving gate closed."""
    return {names.SERVING_GATE: PodCondition("False", reason, message, since)}


def running(*, ready: bool = True, restarts: int = 0, ended_before: Termination | None = None) -> Container:
    return Container(names.RUNTIME_CONTAINER, running=True, ready=ready, restarts=restarts, ended_before=ended_before)


def waiting(reason: str, message: str = "", ended_before: Termination | None = None) -> Container:
    return Container(names.RUNTIME_CONTAINER, waiting_reason=reason, waiting_message=message, ended_before=ended_before)


def pod(name: str, stage: Stage = Stage.SERVING, *, revision: str = "new", age_s: float = 3600, **fields: Any) -> Pod:
    """A pod in that stage. `fields` replace what follows from the stage."""
    made = {
        "name": name,
        "uid": f"{name}-uid",
        "revision": revision,
        "created_at": NOW - timedelta(seconds=age_s),
        "phase": PodPhase.RUNNING,
        "ip": "10.0.0.1",
        "node": "node-1",
        "containers": (running(),),
        "runtime": engine(),
        **_STAGES[stage],
    }
    found = Pod(**(made | fields))
    assert found.stage is stage
    return found


_READY = {"Ready": PodCondition("True")}
_UNREADY = {"Ready": PodCondition("False")}
_STAGES: dict[Stage, dict[str, Any]] = {
    Stage.SERVING: {"conditions": gates() | _READY},
    Stage.STARTING: {
        "conditions": _UNREADY,
        "containers": (running(ready=False),),
        "runtime": engine(Phase.LOADING, progress=0.4),
    },
    Stage.UNREADY: {"conditions": gates() | _UNREADY, "containers": (running(ready=False),), "runtime": SILENT},
    Stage.DRAINING: {
        "conditions": gates() | closed("Draining") | _UNREADY,
        "runtime": engine(draining=True, inflight=1),
    },
    Stage.FINISHED: {"phase": PodPhase.FAILED, "containers": (), "runtime": SILENT},
    Stage.LEAVING: {"deleting": True},
}


def snapshot(pods: Iterable[Pod] = (), *, status: dict[str, Any] | None = None, **fields: Any) -> Snapshot:
    """A snapshot of `tiny` with these pods; keywords of a spec in camelCase, or fields of the snapshot."""
    spec_fields = {key: fields.pop(key) for key in list(fields) if key not in Snapshot.__dataclass_fields__}
    typed = service(**spec_fields)
    made: dict[str, Any] = {
        "meta": typed.metadata,
        "spec": typed.spec,
        "status": InferenceServiceStatus.model_validate(status or {}),
        "revision": "new",
        "pods": tuple(pods),
        "service": ObjectState.CURRENT,
        "secret": ObjectState.CURRENT,
        "budget": ObjectState.CURRENT,
        "adapter_wishes": wishes_of(typed.spec.adapters, Settings()),
    }
    return Snapshot(**(made | fields))


def revision(name: str, number: int, **fields: Any) -> Revision:
    """A revision that is kept, with a template that pods can be made from."""
    template = RevisionTemplate.of(service(), Settings())
    made: dict[str, Any] = {"template": template, "created_at": NOW - timedelta(hours=1)} | fields
    return Revision(name=name, uid=f"{name}-revision-uid", number=number, **made)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)
