"""Why a pod does not serve: from what Kubernetes and the engine say to a cause, words, and a remedy.

`CHECKS` is a chain of small functions; the first that finds something decides. `TABLE` says for every cause which
condition it makes false (beside `Degraded`, which every cause makes true) and what a person can do.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from kvasir_operator.api.conditions import ConditionType, Reason
from kvasir_operator.api.field_errors import FieldError
from kvasir_operator.placement.capacity import Misfit
from kvasir_operator.planning.state import Container, Pod, PodPhase, Refusal, Termination
from kvasir_operator.resources.engine import in_words_of_the_spec
from kvasir_runtime.contract.failures import FailureReport

MESSAGE_LIMIT: Final = 1000
"""Characters of a message; schedulers of large clusters write long ones."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one pod does not serve. `vague` words say less than what was said of the same failure before."""

    pod: str
    cause: Reason
    message: str
    remedy: str
    time: datetime | None = None
    vague: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """What a cause means: the condition that it makes false, and what to do."""

    condition: ConditionType | None
    remedy: str


_MODEL: Final = ConditionType.MODEL_AVAILABLE
_FITS: Final = ConditionType.CAPACITY_FITS
_DEVICE: Final = ConditionType.ACCELERATOR_AVAILABLE

TABLE: Final[Mapping[Reason, Row]] = {
    # The model
    Reason.MODEL_NOT_FOUND: Row(_MODEL, "Check spec.model.source.uri: nothing was found there."),
    Reason.MODEL_INVALID: Row(_MODEL, "Check that the folder is complete and in Hugging Face layout."),
    Reason.MODEL_UNSUPPORTED: Row(_MODEL, "Choose a model of a supported architecture, or a newer runtime image."),
    Reason.WEIGHTS_CORRUPT: Row(_MODEL, "Copy the model to its source again; a file is damaged."),
    Reason.SOURCE_UNREACHABLE: Row(_MODEL, "Check the address, the network and the proxy between node and source."),
    Reason.SOURCE_FORBIDDEN: Row(_MODEL, "Check the credentials in spec.model.source.secretName and their rights."),
    Reason.SOURCE_NOT_ALLOWED: Row(
        _MODEL, "Use another kind of source, or have the operator's settings allow this one."
    ),
    Reason.CLAIM_NOT_FOUND: Row(_MODEL, "Create the volume claim, or correct spec.model.source.uri."),
    Reason.DISK_FULL: Row(_MODEL, "Give the nodes more disk, or keep the model in a volume claim (pvc://)."),
    # Memory
    Reason.OUT_OF_MEMORY_WEIGHTS: Row(_FITS, "Use a larger device, more devices (parallelism.tensor) or quantization."),
    Reason.OUT_OF_MEMORY_KV_CACHE: Row(_FITS, "Lower maxModelLen or maxNumSeqs, or give the KV cache more memory."),
    Reason.OUT_OF_MEMORY_KILLED: Row(_FITS, "Raise spec.resources.limits.memory, or lower engine.kvCacheMemory."),
    # Devices
    Reason.WAITING_FOR_GPU: Row(_DEVICE, "Add nodes with free devices, or lower what other services take."),
    Reason.NO_MATCHING_NODE: Row(_DEVICE, "Check accelerator.products, nodeSelector and affinity against node labels."),
    Reason.ACCELERATOR_ERROR: Row(_DEVICE, "Check driver and device on the node; drain the node if it happens again."),
    # Adapters
    Reason.ADAPTER_INVALID: Row(
        ConditionType.ADAPTERS_READY, "Check the adapter's rank, target modules and base model."
    ),
    # Pods and nodes
    Reason.UNSCHEDULABLE: Row(None, "Lower spec.resources, or add nodes that have what the message misses."),
    Reason.IMAGE_PULL_FAILED: Row(None, "Check spec.engine.image, the registry and the pull secrets."),
    Reason.SECRET_NOT_FOUND: Row(None, "Create the Secret in the namespace of the service, or correct its name."),
    Reason.CONTAINER_CONFIG_INVALID: Row(None, "Correct what the message names in spec.engine.env or the image."),
    Reason.VOLUME_FAILED: Row(None, "Check the volume or the volume claim that the message names."),
    Reason.SANDBOX_FAILED: Row(None, "Check the network plugin and the container runtime of the node."),
    Reason.PROBE_FAILED: Row(None, "See the pod's log: the engine was alive but did not answer its probes."),
    Reason.INVALID_ARGUMENTS: Row(None, "Correct spec.engine; extraArgs and env reach the engine as they are."),
    Reason.PORT_IN_USE: Row(None, "Free ports 8000 and 8001 in the pod: another container took one."),
    Reason.ENGINE_DIED: Row(None, "See the log of the pod's last process (kubectl logs --previous)."),
    Reason.INTERNAL_ERROR: Row(None, "See the logs of the pod and of the operator; this should be reported."),
    Reason.CRASH_LOOP: Row(None, "See the log of the pod's last process (kubectl logs --previous)."),
    Reason.EVICTED: Row(None, "Give the node more of what it ran short of, or raise spec.resources.requests."),
    Reason.NODE_LOST: Row(
        None, "Check the node; Kubernetes gives its pods up after some minutes, then they are replaced elsewhere."
    ),
    # Rollouts
    Reason.GOLDEN_PROMPTS_DIFFER: Row(
        None, "Check the new model or engine; raise autoRollback.goldenTolerance if the difference is meant."
    ),
    Reason.SLOWER_THAN_BEFORE: Row(
        None, "Check the new engine's settings and resources; raise autoRollback.ttftP95Ratio if that is good enough."
    ),
    Reason.MORE_ERRORS_THAN_BEFORE: Row(
        None, "See the new pods' logs; raise autoRollback.errorRate if so many errors are good enough."
    ),
    Reason.PROGRESS_DEADLINE_EXCEEDED: Row(
        None, "See what the new replicas wait for; raise rollout.progressDeadline if they need longer."
    ),
    Reason.POD_REFUSED: Row(None, "Change what the message names: a quota, a policy, or a limit of the node."),
}


def failure_of(pod: Pod) -> Failure | None:
    """Why the pod does not serve, as far as anybody said; None for one that serves or is merely on its way."""
    if pod.deleting or pod.ready:
        return None
    return next((found for check in CHECKS if (found := check(pod)) is not None), None)


def failure_of_refusal(refusal: Refusal) -> Failure:
    """A write that the API server refused, as a failure of the service."""
    cause = Reason.POD_REFUSED if refusal.action in ("CreatePod", "CreateInspection") else Reason.INTERNAL_ERROR
    message = _cut(f"{refusal.action} failed: {refusal.message}")
    return Failure(refusal.pod, cause, message, TABLE[cause].remedy, refusal.since)


def failure_of_source(errors: Iterable[FieldError]) -> Failure:
    """A source that the operator's settings do not allow."""
    cause = Reason.SOURCE_NOT_ALLOWED
    return Failure("", cause, _cut("; ".join(map(str, errors))), TABLE[cause].remedy)


def failure_of_misfit(misfit: Misfit) -> Failure:
    """A model that fits on nothing that is there."""
    cause = Reason(misfit.cause.value)
    problem, remedy = in_words_of_the_spec(misfit.problem), misfit.remedy
    return Failure("", cause, _cut(problem), f"{remedy[:1].upper()}{remedy[1:]}." if remedy else TABLE[cause].remedy)


def worst(failures: Iterable[Failure]) -> Failure | None:
    """The one to show where pods fail in several ways: the first in the table, then by the pod's name."""
    rank = {cause: position for position, cause in enumerate(TABLE)}
    return min(failures, key=lambda failure: (rank[failure.cause], failure.pod), default=None)


def _failure(
    pod: Pod, cause: Reason, message: str, *, remedy: str = "", time: datetime | None = None, vague: bool = False
) -> Failure:
    return Failure(pod.name, cause, _cut(message), remedy or TABLE[cause].remedy, time, vague)


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MESSAGE_LIMIT else text[: MESSAGE_LIMIT - 1] + "…"


# --- Checks, in order -------------------------------------------------------------------------------------------------

_NODE_GONE: Final = frozenset({"NodeLost", "NodeShutdown", "Shutdown", "Terminated", "NodeAffinity"})


def _ended_by_node(pod: Pod) -> Failure | None:
    """A pod that the kubelet gave up, by its `status.reason`."""
    if pod.phase is not PodPhase.FAILED or not pod.reason:
        return None
    words = f"{pod.reason}: {pod.message}" if pod.message else pod.reason
    if pod.reason in ("Evicted", "Preempting"):
        return _failure(pod, Reason.EVICTED, words)
    return _failure(pod, Reason.NODE_LOST if pod.reason in _NODE_GONE else Reason.POD_REFUSED, words)


def _unschedulable(pod: Pod) -> Failure | None:
    scheduled = pod.condition("PodScheduled")
    if scheduled.status != "False":
        return None
    cause = next((cause for pattern, cause in _SCHEDULER_SAYS if pattern.search(scheduled.message)), None)
    return _failure(pod, cause or Reason.UNSCHEDULABLE, scheduled.message or scheduled.reason, time=scheduled.since)


_SCHEDULER_SAYS: Final = (
    (re.compile(r"persistentvolumeclaim .* not found"), Reason.CLAIM_NOT_FOUND),
    (re.compile(r"PersistentVolumeClaim|volume node affinity"), Reason.VOLUME_FAILED),
    (re.compile(r"Insufficient (?!cpu|memory|ephemeral-storage|pods)\S+/\S+"), Reason.WAITING_FOR_GPU),
    (re.compile(r"Insufficient"), Reason.UNSCHEDULABLE),
    (re.compile(r"didn't match (Pod's )?node (selector|affinity)"), Reason.NO_MATCHING_NODE),
)


def _waiting(pod: Pod) -> Failure | None:
    """A container that the kubelet cannot start: its image, or what its manifest refers to."""
    for container in pod.containers:
        words = container.waiting_message or container.waiting_reason
        if container.waiting_reason in _IMAGE_REASONS:
            vague = container.waiting_reason == "ImagePullBackOff"
            return _failure(pod, Reason.IMAGE_PULL_FAILED, words, vague=vague)
        if container.waiting_reason in _CONFIG_REASONS:
            missing_secret = re.search(r'secret ".*" not found', words) is not None
            return _failure(pod, Reason.SECRET_NOT_FOUND if missing_secret else Reason.CONTAINER_CONFIG_INVALID, words)
    return None


_IMAGE_REASONS: Final = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "RegistryUnavailable",
        "ImageInspectError",
    }
)
_CONFIG_REASONS: Final = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})


def _reported(pod: Pod) -> Failure | None:
    """What the engine or the fetch wrote before its end."""
    for container, end in _ends(pod):
        report = FailureReport.from_json(end.message)
        if report is not None:
            where = "" if not container.init else f"{container.name}: "
            cause = Reason(report.cause.value)
            message, remedy = in_words_of_the_spec(report.message), in_words_of_the_spec(report.remedy)
            return _failure(pod, cause, where + message, remedy=remedy, time=end.finished_at)
    return None


def _killed_for_memory(pod: Pod) -> Failure | None:
    """The kernel's word comes before the engine's: its front end only sees that another process died."""
    for container, end in _ends(pod):
        if end.reason == "OOMKilled":
            message = f"container {container.name} used more memory than its limit and was killed"
            return _failure(pod, Reason.OUT_OF_MEMORY_KILLED, message, time=end.finished_at)
    return None


def _probes(pod: Pod) -> Failure | None:
    """An engine that the kubelet restarted because it did not answer."""
    if not any(True for _ in _ends(pod)):
        return None
    failed = [each for each in pod.warnings if re.match(r"(Liveness|Startup) probe failed", each.message)]
    return _failure(pod, Reason.PROBE_FAILED, failed[-1].message) if failed else None


_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{6,}")


def _crashed(pod: Pod) -> Failure | None:
    for container, end in _ends(pod):
        said = _ADDRESS.sub("0x…", end.message.strip())[-400:]  # or each end of the same kind would be told anew
        last_words = f": {said}" if said else ""
        kind = f" ({end.reason})" if end.reason not in ("", "Error") else ""
        message = f"container {container.name} ended with exit code {end.exit_code}{kind}{last_words}"
        return _failure(pod, Reason.CRASH_LOOP, message, time=end.finished_at)
    return None


def _volumes(pod: Pod) -> Failure | None:
    """What the kubelet recorded as Events about a pod whose containers it cannot make yet."""
    for warning in reversed(pod.warnings):
        cause = _cause_of_warning(warning.reason, warning.message)
        if cause is not None:
            return _failure(pod, cause, f"{warning.reason}: {warning.message}")
    return None


def _cause_of_warning(reason: str, message: str) -> Reason | None:
    if reason == "FailedCreatePodSandBox":
        return Reason.SANDBOX_FAILED
    if reason not in ("FailedMount", "FailedAttachVolume", "FailedMapVolume"):
        return None
    if "hostPath type check failed" in message:
        return Reason.MODEL_NOT_FOUND
    return Reason.SECRET_NOT_FOUND if re.search(r'secret ".*" not found', message) else Reason.VOLUME_FAILED


def _node_silent(pod: Pod) -> Failure | None:
    """What else is known of the pod was true when its node was last heard of."""
    if pod.silent_since is None and pod.phase is not PodPhase.UNKNOWN:
        return None
    return _failure(pod, Reason.NODE_LOST, f"node {pod.node} does not report", time=pod.silent_since)


CHECKS: Final[tuple[Callable[[Pod], Failure | None], ...]] = (
    _ended_by_node,
    _node_silent,
    _unschedulable,
    _waiting,
    _killed_for_memory,
    _reported,
    _probes,
    _crashed,
    _volumes,
)


def _ends(pod: Pod) -> Iterable[tuple[Container, Termination]]:
    """Containers that are not well and have ended badly, with that end. Waiting after a clean end is bad too."""
    for container in pod.containers:
        end = container.last_end
        if end is None or container.ready or (container.init and end.exit_code == 0):
            continue
        if end.exit_code != 0 or container.waiting_reason == "CrashLoopBackOff":
            yield container, end
