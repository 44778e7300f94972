"""Why a pod does not serve: pods as the kubelet and the scheduler describe them, and what is made of that."""

from typing import Any

import pytest

from kvasir_operator.api.conditions import Reason
from kvasir_operator.placement.capacity import Misfit, plan_capacity
from kvasir_operator.planning.failures import (
    CHECKS,
    TABLE,
    Failure,
    failure_of,
    failure_of_misfit,
    failure_of_refusal,
    worst,
)
from kvasir_operator.planning.reading import read_pod
from kvasir_operator.planning.state import PodWarning, Refusal
from kvasir_runtime.contract.failures import Cause, FailureReport
from kvasir_runtime.contract.memory import ModelShape
from tests.kvasir_operator.placement.models import BY_NAME
from tests.kvasir_operator.planning.builders import NOW, service


def failed(pod: dict[str, Any], *warnings: PodWarning) -> Failure:
    found = failure_of(read_pod(pod, warnings=warnings))
    assert found is not None
    return found


TIME = "2026-03-01T11:59:00Z"


def manifest(*, reason: str = "", message: str = "", phase: str = "Pending", conditions=(), **status: Any):
    """A pod with that status."""
    return {
        "metadata": {"name": "p", "uid": "u", "creationTimestamp": TIME},
        "spec": {"nodeName": "node-1"},
        "status": {"phase": phase, "reason": reason, "message": message, "conditions": list(conditions), **status},
    }


def unschedulable(message: str):
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return manifest(conditions=[condition])


def waits(reason: str, message: str = "", *, last: dict[str, Any] | None = None):
    state = {"waiting": {"reason": reason, "message": message}}
    container = {"name": "runtime", "ready": False, "state": state, "restartCount": 1 if last else 0}
    return manifest(containerStatuses=[container | ({"lastState": {"terminated": last}} if last else {})])


def ended(code: int, message: str = "", reason: str = "Error") -> dict[str, Any]:
    return {"exitCode": code, "reason": reason, "message": message, "finishedAt": TIME}


def fetch_ended(message: str):
    container = {"name": "fetch", "ready": False, "state": {"terminated": ended(1, message)}}
    return manifest(initContainerStatuses=[container], containerStatuses=[])


def report(cause: Cause) -> str:
    return FailureReport(cause, f"it was {cause}", "do something").to_json()


def crash(message: str = "", code: int = 1, reason: str = "Error"):
    return waits("CrashLoopBackOff", "back-off 10s restarting failed container", last=ended(code, message, reason))


@pytest.mark.parametrize(
    ("pod", "cause", "words"),
    [
        (unschedulable("0/1 nodes are available: 1 Insufficient cpu."), Reason.UNSCHEDULABLE, "Insufficient cpu"),
        (
            unschedulable("0/3 nodes are available: 1 Insufficient memory, 3 Insufficient nvidia.com/gpu."),
            Reason.WAITING_FOR_GPU,
            "nvidia.com/gpu",
        ),
        (
            unschedulable("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity."),
            Reason.NO_MATCHING_NODE,
            "affinity",
        ),
        (
            unschedulable("0/1 nodes are available: 1 node(s) didn't match node selector."),
            Reason.NO_MATCHING_NODE,
            "selector",
        ),
        (
            unschedulable("0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector."),
            Reason.NO_MATCHING_NODE,
            "selector",
        ),
        (unschedulable('persistentvolumeclaim "models" not found'), Reason.CLAIM_NOT_FOUND, "models"),
        (
            unschedulable("0/1 nodes are available: 1 pod has unbound immediate PersistentVolumeClaims."),
            Reason.VOLUME_FAILED,
            "unbound",
        ),
        (
            unschedulable("0/2 nodes are available: 2 node(s) were unschedulable."),
            Reason.UNSCHEDULABLE,
            "unschedulable",
        ),
        (waits("ErrImagePull", "rpc error: code = NotFound"), Reason.IMAGE_PULL_FAILED, "NotFound"),
        (waits("ImagePullBackOff", 'Back-off pulling image "x"'), Reason.IMAGE_PULL_FAILED, "x"),
        (waits("InvalidImageName", 'couldn\'t parse "X:"'), Reason.IMAGE_PULL_FAILED, "parse"),
        (waits("ErrImageNeverPull"), Reason.IMAGE_PULL_FAILED, "ErrImageNeverPull"),
        (waits("CreateContainerConfigError", 'secret "keys" not found'), Reason.SECRET_NOT_FOUND, "keys"),
        (
            waits("CreateContainerConfigError", 'configmap "env" not found'),
            Reason.CONTAINER_CONFIG_INVALID,
            "env",
        ),
        (waits("RunContainerError", "exec: not found"), Reason.CONTAINER_CONFIG_INVALID, "exec"),
        (crash(reason="OOMKilled", code=137), Reason.OUT_OF_MEMORY_KILLED, "memory"),
        (crash("Traceback\nKeyError: 'x'"), Reason.CRASH_LOOP, "exit code 1: Traceback KeyError"),
        (crash("Current thread 0x00007f541ebba040"), Reason.CRASH_LOOP, "Current thread 0x…"),
        (crash(code=0, reason="Completed"), Reason.CRASH_LOOP, "exit code 0 (Completed)"),
        *((crash(report(cause)), Reason(cause.value), f"it was {cause}") for cause in Cause),
        (fetch_ended(report(Cause.MODEL_NOT_FOUND)), Reason.MODEL_NOT_FOUND, "fetch: it was ModelNotFound"),
        (fetch_ended("no JSON"), Reason.CRASH_LOOP, "container fetch ended"),
        (manifest(phase="Failed", reason="Evicted", message="low on memory"), Reason.EVICTED, "low on memory"),
        (manifest(phase="Failed", reason="NodeShutdown"), Reason.NODE_LOST, "NodeShutdown"),
        (
            manifest(phase="Failed", reason="UnexpectedAdmissionError", message="no device"),
            Reason.POD_REFUSED,
            "no device",
        ),
    ],
)
def test_causes(pod, cause, words):
    """The cause, the words that were used, and a remedy."""
    failure = failed(pod)
    assert (failure.pod, failure.cause) == ("p", cause)
    assert words in failure.message
    assert failure.remedy


@pytest.mark.parametrize(
    ("reason", "message", "cause"),
    [
        ("FailedMount", 'MountVolume.SetUp failed for volume "x" : secret "keys" not found', Reason.SECRET_NOT_FOUND),
        (
            "FailedMount",
            "MountVolume.SetUp failed : hostPath type check failed: /m is not a directory",
            Reason.MODEL_NOT_FOUND,
        ),
        ("FailedMount", "Unable to attach or mount volumes: timed out", Reason.VOLUME_FAILED),
        ("FailedAttachVolume", "Multi-Attach error", Reason.VOLUME_FAILED),
        ("FailedCreatePodSandBox", "cni plugin not initialized", Reason.SANDBOX_FAILED),
    ],
)
def test_what_only_events_tell(reason, message, cause):
    """Volumes and sandboxes fail without a word in the pod's status."""
    failure = failed(manifest(), PodWarning("Other", "old news"), PodWarning(reason, message))
    assert (failure.cause, message[:20] in failure.message) == (cause, True)


def test_the_kernels_word_comes_before_the_engines():
    """The front end reports that the engine died; that it was killed for memory only the kubelet knows."""
    died = crash(report(Cause.ENGINE_DIED), reason="OOMKilled", code=137)
    assert failed(died).cause is Reason.OUT_OF_MEMORY_KILLED


def test_failed_probes():
    """An engine that the kubelet restarted for its silence; the readiness probe fails in every start."""
    slow = crash(code=137)
    liveness = PodWarning("Unhealthy", "Liveness probe failed: timeout")
    readiness = PodWarning("Unhealthy", "Readiness probe failed: 503")
    assert failed(slow, liveness, readiness).cause is Reason.PROBE_FAILED
    assert failed(slow, readiness).cause is Reason.CRASH_LOOP


@pytest.mark.parametrize(
    "well",
    [
        manifest(),
        manifest(conditions=[{"type": "PodScheduled", "status": "True"}]),
        waits("ContainerCreating"),
        waits("PodInitializing"),
        manifest(containerStatuses=[{"name": "runtime", "state": {"running": {}}, "ready": False}]),
        manifest(initContainerStatuses=[{"name": "fetch", "ready": True, "state": {"terminated": ended(0)}}]),
        manifest(
            conditions=[{"type": "Ready", "status": "True"}],
            containerStatuses=[
                {"name": "runtime", "ready": True, "state": {"running": {}}, "lastState": {"terminated": ended(1)}}
            ],
        ),
    ],
)
def test_a_pod_on_its_way_has_not_failed(well):
    """Nor has one that failed once and serves now."""
    assert failure_of(read_pod(well)) is None


def test_a_restarted_engine_counts_as_failed_until_it_is_ready():
    """Else the reason would come and go with every attempt."""
    loading = {"name": "runtime", "ready": False, "state": {"running": {}}, "restartCount": 1}
    loading["lastState"] = {"terminated": ended(1, report(Cause.ENGINE_DIED))}
    assert failed(manifest(containerStatuses=[loading])).cause is Reason.ENGINE_DIED


def test_a_silent_node_is_told_whatever_its_pods_said_last():
    """What else is known of a pod was true when its node was last heard of: nothing of it counts any more."""
    for pod in (manifest(), crash(report(Cause.ENGINE_DIED))):
        failure = failure_of(read_pod(pod, silent_since=NOW))
        assert failure is not None
        assert (failure.cause, failure.message, failure.time) == (
            Reason.NODE_LOST, "node node-1 does not report", NOW,
        )  # fmt: skip


def test_what_fits_on_nothing_names_the_fields_of_the_spec():
    """The formula speaks of the engine's settings, people of the spec's."""
    shape = ModelShape.from_hf_config(BY_NAME["Llama-3.1-8B"].config)
    planned = plan_capacity(service(accelerator={"count": 1}).spec, shape, 24 << 30)
    assert isinstance(planned, Misfit)
    failure = failure_of_misfit(planned)
    assert failure.cause is Reason.OUT_OF_MEMORY_KV_CACHE
    assert failure.message.startswith("one sequence of spec.model.maxModelLen 131072 needs 16Gi of KV cache")
    assert failure.remedy.startswith("What would fit: spec.model.maxModelLen at most ")


def test_refused_writes():
    """A quota is said to be one, whichever pod it keeps out."""
    inspection = failure_of_refusal(Refusal("CreateInspection", "p", "exceeded quota", NOW))
    assert inspection.cause is Reason.POD_REFUSED
    failure = failure_of_refusal(Refusal("CreatePod", "p", 'pods "p" is forbidden: exceeded quota', NOW))
    assert (failure.cause, "exceeded quota" in failure.message) == (Reason.POD_REFUSED, True)


def test_long_messages_are_cut():
    """The status stays readable, and small."""
    failure = failed(unschedulable("0/5000 nodes are available: " + "x" * 5000))
    assert len(failure.message) == 1000


def test_the_worst_failure_does_not_depend_on_order():
    """The first in the table, then by name."""
    failures = [
        failed(pod) for pod in (crash(), unschedulable("Insufficient cpu"), crash(report(Cause.MODEL_NOT_FOUND)))
    ]
    assert worst(failures) == worst(reversed(failures)) == failures[2]
    assert worst([]) is None


def test_every_cause_of_the_runtime_has_a_row():
    """A cause that the engine may report is one that the operator can show."""
    assert {Reason(cause.value) for cause in Cause} <= set(TABLE)
    assert len(CHECKS) == len(set(CHECKS))
