"""Pods as the API server gives them, read into values. What a field lacks is what Kubernetes means by its absence."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from kvasir_operator.planning.state import (
    NOT_ASKED,
    Container,
    HandOver,
    Pod,
    PodCondition,
    PodPhase,
    PodWarning,
    Termination,
    Unknown,
    Warming,
)
from kvasir_operator.planning.times import read_time
from kvasir_operator.resources import names
from kvasir_runtime.contract.admin_api import AdapterReports, AdminState

Manifest = Mapping[str, Any]

_EPOCH = datetime.fromtimestamp(0, UTC)


def read_pod(
    manifest: Manifest,
    runtime: AdminState | Unknown = NOT_ASKED,
    warnings: tuple[PodWarning, ...] = (),
    silent_since: datetime | None = None,
    adapters: AdapterReports | Unknown = NOT_ASKED,
    warming: Warming | None = None,
    handover: HandOver | None = None,
) -> Pod:
    """Read one pod of a service; `runtime` is what its engine said, `warnings` what its Events say.

    `silent_since` is when its node was last heard of, where that is silent; `adapters` how the engine's adapters fare,
    `warming` and `handover` what was last done for its cache.
    """
    metadata, spec, status = manifest["metadata"], manifest.get("spec", {}), manifest.get("status", {})
    return Pod(
        name=metadata["name"],
        uid=metadata["uid"],
        revision=metadata.get("labels", {}).get(names.REVISION_LABEL, ""),
        created_at=read_time(metadata.get("creationTimestamp")) or _EPOCH,
        phase=PodPhase(status.get("phase", PodPhase.PENDING)),
        reason=status.get("reason", ""),
        message=status.get("message", ""),
        deleting="deletionTimestamp" in metadata,
        ip=status.get("podIP", ""),
        node=spec.get("nodeName", ""),
        attempt=_count(metadata.get("annotations", {}).get(names.ATTEMPT_ANNOTATION)),
        conditions={each["type"]: _condition(each) for each in status.get("conditions", ())},
        containers=(
            *_containers(status.get("initContainerStatuses", ()), init=True),
            *_containers(status.get("containerStatuses", ()), init=False),
        ),
        warnings=warnings,
        products=tuple(filter(None, metadata.get("annotations", {}).get(names.PRODUCTS_ANNOTATION, "").split(","))),
        silent_since=silent_since,
        runtime=runtime,
        adapters=adapters,
        warming=warming,
        handover=handover,
    )


def _condition(manifest: Manifest) -> PodCondition:
    return PodCondition(
        status=manifest.get("status", "Unknown"),
        reason=manifest.get("reason") or "",
        message=manifest.get("message") or "",
        since=read_time(manifest.get("lastTransitionTime")),
    )


def _containers(manifests: Iterable[Manifest], *, init: bool) -> Iterable[Container]:
    for manifest in manifests:
        state = manifest.get("state", {})
        waiting = state.get("waiting", {})
        yield Container(
            name=manifest["name"],
            init=init,
            running="running" in state,
            ready=manifest.get("ready", False),
            restarts=manifest.get("restartCount", 0),
            waiting_reason=waiting.get("reason", ""),
            waiting_message=waiting.get("message", ""),
            ended=_termination(state),
            ended_before=_termination(manifest.get("lastState", {})),
        )


def _termination(state: Manifest) -> Termination | None:
    ended = state.get("terminated")
    if ended is None:
        return None
    return Termination(
        exit_code=ended.get("exitCode", 0),
        reason=ended.get("reason", ""),
        message=ended.get("message", ""),
        finished_at=read_time(ended.get("finishedAt")),
    )


def _count(text: str | None) -> int:
    """The annotation as a number; what somebody wrote into it by hand counts as none."""
    return int(text) if text and text.isdecimal() else 0
