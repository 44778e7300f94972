"""The pod of one replica: a pure function from a revision's template to a manifest."""

import math
from collections.abc import Mapping
from typing import Any, Final

from kvasir_operator.api.kubernetes import parse_quantity
from kvasir_operator.api.v1alpha1 import ObjectMeta
from kvasir_operator.resources import names, placement
from kvasir_operator.resources.adapter_files import adapter_volumes
from kvasir_operator.resources.engine import serve_arguments
from kvasir_operator.resources.owner import owned_metadata
from kvasir_operator.resources.quantities import without_devices
from kvasir_operator.resources.sources import ModelFiles, model_files, secret_volume
from kvasir_operator.resources.template_hash import RevisionTemplate
from kvasir_operator.settings import Settings

Manifest = dict[str, Any]

USER_ID: Final = 65532
"""User and group of the images' only account, the number that distroless images use too."""

STARTUP_PERIOD: Final = 2
"""Seconds between two looks of the startup probe: a small model serves two seconds after it has loaded at most."""

LEAVE_SECONDS: Final = 3
"""Seconds that a pod goes on taking requests after somebody deleted or evicted it: until then kube-proxies may send
it some. The drain begins after that."""

HUNG_SECONDS: Final = 10
"""Seconds that an engine which answers no liveness probe has to end: its drain would last for ever. Kubernetes before
1.25 does not know the field, leaves it out, and waits for the pod's whole grace period."""

KV_FOLDER_SLACK: Final = 1.05
"""Folders, drafts and rounding up to disk blocks, on top of the files: the kubelet evicts a pod above its limit."""

ENVIRONMENT: Final = {
    "HOME": "/tmp",  # noqa: S108 - the pod's own emptyDir; the root file system is read-only
    "TRITON_CACHE_DIR": "/tmp/triton",  # noqa: S108 - likewise
    "PYTHONUNBUFFERED": "1",
}
"""Variables of every container; the service's own take precedence."""


def build_pod(
    owner: ObjectMeta, template: RevisionTemplate, name: str, settings: Settings, revision: str = ""
) -> Manifest:
    """The manifest of one replica. Raises ValueError for a source that the settings refuse (see `check_source`).

    `revision` is what the template was kept as; another version of the operator may give it another digest.
    """
    files = model_files(template.model.source, settings)
    revision = revision or template.digest()
    metadata = owned_metadata(owner, name, names.replica_labels(owner.name, revision))
    metadata["annotations"] = {names.DEFAULT_CONTAINER_ANNOTATION: names.RUNTIME_CONTAINER}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {
            **_scheduling(owner.name, template),
            **identity(template),
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": grace_period(template, settings),
            "readinessGates": [{"conditionType": gate} for gate in names.GATES],
            "initContainers": _init_containers(template, files, settings),
            "containers": [_runtime(template, files, settings)],
            "volumes": _volumes(owner.name, template, files, settings),
        },
    }


def grace_period(template: RevisionTemplate, settings: Settings) -> int:
    """Seconds between SIGTERM and SIGKILL: the drain, then time to end; 5m and 15 s are 315."""
    return math.ceil(template.drain.timeout.seconds + settings.drain_margin_seconds)


def identity(template: RevisionTemplate) -> Manifest:
    """Who the pod is: nobody, without a token for the API server, and without other Services' variables."""
    account = {"serviceAccountName": template.service_account_name} if template.service_account_name else {}
    return {
        **account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def _scheduling(service: str, template: RevisionTemplate) -> Manifest:
    spread = [each.to_manifest() for each in template.topology_spread_constraints]
    own_pods = {"matchLabels": names.replica_selector(service)}
    found = {
        "nodeSelector": template.node_selector,
        "affinity": placement.affinity(template.affinity, template.accelerator),
        "tolerations": placement.tolerations(template.tolerations, template.accelerator),
        "topologySpreadConstraints": [{"labelSelector": own_pods, **each} for each in spread],
    }
    return {key: value for key, value in found.items() if value}


def _runtime(template: RevisionTemplate, files: ModelFiles, settings: Settings) -> Manifest:
    return {
        "name": names.RUNTIME_CONTAINER,
        **common(template, settings),
        "args": serve_arguments(template, files.folder),
        "ports": [
            {"name": names.USER_PORT_NAME, "containerPort": names.USER_PORT, "protocol": "TCP"},
            {"name": names.ADMIN_PORT_NAME, "containerPort": names.ADMIN_PORT, "protocol": "TCP"},
        ],
        "startupProbe": _probe(
            "/startupz", STARTUP_PERIOD, failures=math.ceil(settings.startup_timeout_seconds / STARTUP_PERIOD)
        ),
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(LEAVE_SECONDS)]}}},
        "livenessProbe": _probe("/livez", 10, failures=3) | {"terminationGracePeriodSeconds": HUNG_SECONDS},
        "readinessProbe": _probe("/readyz", 2, failures=2),
        "resources": template.resources.to_manifest(),
        "volumeMounts": [*_runtime_mounts(template), *files.mounts, *_adapter_files(template, files)[1]],
    }


def _init_containers(template: RevisionTemplate, files: ModelFiles, settings: Settings) -> list[Manifest]:
    if not files.fetch_arguments:
        return []
    return [
        {
            "name": names.FETCH_CONTAINER,
            **common(template, settings, fetch_environment(template, settings)),
            "args": files.fetch_arguments,
            "resources": without_devices(template.resources).to_manifest(),
            "volumeMounts": [{"name": names.TMP_VOLUME, "mountPath": "/tmp"}, *files.fetch_mounts],  # noqa: S108
        }
    ]


def fetch_environment(template: RevisionTemplate, settings: Settings) -> dict[str, str]:
    """Variables of the fetch: it refuses a model that its volume cannot hold, which else would evict the pod.

    The volume is bounded by its size limit, and with everything else of the pod by the limit on ephemeral storage.
    """
    limit = parse_quantity(template.resources.limits.get("ephemeral-storage", ""))
    bounds = [settings.model_volume_size.bytes] if settings.model_volume_size is not None else []
    bounds += [math.floor(limit)] if limit is not None else []
    return {names.FETCH_MAX_SIZE: str(min(bounds))} if bounds else {}


def common(template: RevisionTemplate, settings: Settings, variables: Mapping[str, str] = {}) -> Manifest:
    """What every container of our pods has; `variables` are those of this one."""
    return {
        "image": template.image,
        "imagePullPolicy": settings.runtime_image_pull_policy,
        "command": [names.RUNTIME],
        "env": _environment(template, {**ENVIRONMENT, **variables}),
        "terminationMessagePath": names.TERMINATION_LOG,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }


def _environment(template: RevisionTemplate, ours: Mapping[str, str]) -> list[Manifest]:
    """Our variables, then the service's; of two with the same name the service's stays."""
    given = [each.to_manifest() for each in template.engine.env]
    taken = {each["name"] for each in given}
    return [{"name": name, "value": value} for name, value in ours.items() if name not in taken] + given


def _probe(path: str, period: int, failures: int) -> Manifest:
    """A probe of the operator port. Five seconds to answer: the processor may be full of prefill."""
    return {
        "httpGet": {"path": path, "port": names.ADMIN_PORT_NAME, "scheme": "HTTP"},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "successThreshold": 1,
        "failureThreshold": failures,
    }


def _volumes(service: str, template: RevisionTemplate, files: ModelFiles, settings: Settings) -> list[Manifest]:
    volumes = [
        {"name": names.TMP_VOLUME, "emptyDir": {}},
        {"name": names.SHM_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": str(settings.shm_size)}},
        secret_volume(names.ADMIN_TOKEN_VOLUME, names.admin_secret_name(service), names.ADMIN_TOKEN_KEY),
    ]
    if template.api_keys_secret is not None:
        volumes.append(secret_volume(names.API_KEYS_VOLUME, template.api_keys_secret, names.API_KEYS_KEY))
    return [*volumes, *_kv_volumes(template), *files.volumes, *_adapter_files(template, files)[0]]


def _kv_volumes(template: RevisionTemplate) -> list[Manifest]:
    """Where files of KV blocks are; a folder of the pod's own is bounded somewhat above what the engine writes."""
    offload = template.engine.kv_offload
    if offload is None or offload.disk is None:
        return []
    disk = offload.disk
    if disk.claim_name is not None:
        return [{"name": names.KV_VOLUME, "persistentVolumeClaim": {"claimName": disk.claim_name}}]
    return [{"name": names.KV_VOLUME, "emptyDir": {"sizeLimit": str(math.ceil(disk.size.bytes * KV_FOLDER_SLACK))}}]


def _adapter_files(template: RevisionTemplate, files: ModelFiles) -> tuple[list[Manifest], list[Manifest]]:
    """Volumes and mounts of the adapters; a folder that holds the model too is mounted once."""
    if template.adapters is None:
        return [], []
    return adapter_volumes(template.adapters, [mount["mountPath"] for mount in files.mounts])


def _runtime_mounts(template: RevisionTemplate) -> list[Manifest]:
    mounts: list[Manifest] = [
        {"name": names.TMP_VOLUME, "mountPath": "/tmp"},  # noqa: S108 - the pod's own emptyDir
        {"name": names.SHM_VOLUME, "mountPath": "/dev/shm"},  # noqa: S108 - likewise
        {"name": names.ADMIN_TOKEN_VOLUME, "mountPath": names.ADMIN_TOKEN_FOLDER, "readOnly": True},
    ]
    if template.api_keys_secret is not None:
        mounts.append({"name": names.API_KEYS_VOLUME, "mountPath": names.API_KEYS_FOLDER, "readOnly": True})
    mounts += [{"name": volume["name"], "mountPath": names.KV_FOLDER} for volume in _kv_volumes(template)]
    return mounts
