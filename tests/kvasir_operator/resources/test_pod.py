"""Whole pods, as they are sent to the API server."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from kvasir_operator.api.v1alpha1 import InferenceService
from kvasir_operator.resources.pod import build_pod, grace_period
from kvasir_operator.resources.template_hash import RevisionTemplate
from kvasir_operator.settings import Settings

MakeService = Callable[..., InferenceService]

Manifest = dict[str, Any]

SETTINGS = Settings(runtime_image="registry.example.com/runtime:1")
OWNER = {
    "apiVersion": "kvasir.dev/v1alpha1",
    "kind": "InferenceService",
    "name": "tiny",
    "uid": "u-1",
    "controller": True,
    "blockOwnerDeletion": True,
}
CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
ENVIRONMENT = [
    {"name": "HOME", "value": "/tmp"},
    {"name": "TRITON_CACHE_DIR", "value": "/tmp/triton"},
    {"name": "PYTHONUNBUFFERED", "value": "1"},
]


def probe(path: str, period: int, failures: int) -> Manifest:
    return {
        "httpGet": {"path": path, "port": "admin", "scheme": "HTTP"},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "successThreshold": 1,
        "failureThreshold": failures,
    }


def test_a_small_service_on_the_processor(make_service: MakeService) -> None:
    """A pod with nothing but a model said."""
    service = make_service()
    template = RevisionTemplate.of(service, SETTINGS)
    digest = template.digest()
    assert build_pod(service.metadata, template, "tiny-r1-aaaaa", SETTINGS) == {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "tiny-r1-aaaaa",
            "namespace": "team",
            "labels": {
                "app.kubernetes.io/name": "kvasir-runtime",
                "app.kubernetes.io/instance": "tiny",
                "app.kubernetes.io/managed-by": "kvasir-operator",
                "app.kubernetes.io/component": "runtime",
                "kvasir.dev/service": "tiny",
                "kvasir.dev/revision": digest,
            },
            "annotations": {"kubectl.kubernetes.io/default-container": "runtime"},
            "ownerReferences": [OWNER],
        },
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "runAsGroup": 65532,
                "fsGroup": 65532,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 315,
            "readinessGates": [
                {"conditionType": "kvasir.dev/adapters"},
                {"conditionType": "kvasir.dev/warm"},
                {"conditionType": "kvasir.dev/serving"},
            ],
            "initContainers": [],
            "containers": [
                {
                    "name": "runtime",
                    "image": "registry.example.com/runtime:1",
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["kvasir-runtime"],
                    "args": [
                        *("serve", "--model", "/models/tiny", "--served-model-name", "tiny", "--revision", digest),
                        *("--device", "cpu", "--port", "8000", "--admin-port", "8001"),
                        *("--admin-token-file", "/var/run/secrets/kvasir/admin/token"),
                        *("--drain-timeout", "300", "--log-format", "json"),
                    ],
                    "env": ENVIRONMENT,
                    "ports": [
                        {"name": "http", "containerPort": 8000, "protocol": "TCP"},
                        {"name": "admin", "containerPort": 8001, "protocol": "TCP"},
                    ],
                    "startupProbe": probe("/startupz", 2, 1800),
                    "lifecycle": {"preStop": {"exec": {"command": ["sleep", "3"]}}},
                    "livenessProbe": {**probe("/livez", 10, 3), "terminationGracePeriodSeconds": 10},
                    "readinessProbe": probe("/readyz", 2, 2),
                    "resources": {
                        "requests": {"cpu": "2", "memory": "4Gi"},
                        "limits": {"cpu": "2", "memory": "4Gi"},
                    },
                    "terminationMessagePath": "/dev/termination-log",
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                    "securityContext": CONTAINER_SECURITY,
                    "volumeMounts": [
                        {"name": "tmp", "mountPath": "/tmp"},
                        {"name": "shm", "mountPath": "/dev/shm"},
                        {"name": "admin-token", "mountPath": "/var/run/secrets/kvasir/admin", "readOnly": True},
                        {"name": "model", "mountPath": "/models", "readOnly": True},
                    ],
                }
            ],
            "volumes": [
                {"name": "tmp", "emptyDir": {}},
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
                {
                    "name": "admin-token",
                    "secret": {
                        "secretName": "tiny-admin",
                        "defaultMode": 0o440,
                        "items": [{"key": "token", "path": "token"}],
                    },
                },
                {"name": "model", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}},
            ],
        },
    }


def test_all_that_a_service_may_say_reaches_the_pod(make_service: MakeService) -> None:
    """Two GPUs, a model from a bucket, and the rest of the spec."""
    spread = {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway"}
    toleration = {"key": "dedicated", "operator": "Equal", "value": "llm", "effect": "NoSchedule"}
    service = make_service(
        model={
            "source": {"uri": "s3://models/big", "secretName": "bucket", "sha256": "0" * 64},
            "servedName": "org/big",
            "dtype": "bfloat16",
            "quantization": "fp8",
            "maxModelLen": 8192,
        },
        engine={
            "image": "registry.example.com/runtime:2",
            "maxNumSeqs": 64,
            "maxNumBatchedTokens": 4096,
            "blockSize": 32,
            "kvCacheDtype": "fp8",
            "kvCacheMemory": "20Gi",
            "prefixCaching": {"enabled": False, "evictionPolicy": "lfu"},
            "schedulingPolicy": "priority",
            "preferPrefill": True,
            "env": [
                {"name": "HOME", "value": "/somewhere"},
                {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            ],
            "extraArgs": ["--seed", "7"],
        },
        accelerator={"count": 2, "products": ["A100-SXM4-80GB"], "minMemory": "80Gi"},
        resources={"requests": {"cpu": 8}},
        nodeSelector={"pool": "gpu"},
        tolerations=[toleration],
        topologySpreadConstraints=[spread],
        serviceAccountName="puller",
        drain={"timeout": "90s"},
        router={"apiKeysSecret": "keys"},
    )
    template = RevisionTemplate.of(service, SETTINGS)
    spec = build_pod(service.metadata, template, "p", SETTINGS)["spec"]
    [runtime], [fetch] = spec["containers"], spec["initContainers"]

    assert runtime["image"] == fetch["image"] == "registry.example.com/runtime:2"
    assert runtime["args"] == [
        *("serve", "--model", "/models/model", "--served-model-name", "org/big", "--revision", template.digest()),
        *("--dtype", "bfloat16", "--quantization", "fp8", "--max-model-len", "8192"),
        *(
            "--max-num-seqs",
            "64",
            "--max-num-batched-tokens",
            "4096",
            "--scheduling-policy",
            "priority",
            "--prefer-prefill",
        ),
        *("--block-size", "32", "--kv-cache-dtype", "fp8", "--kv-cache-memory", str(20 * 2**30)),
        *("--no-enable-prefix-caching", "--prefix-eviction-policy", "lfu"),
        *("--device", "cuda", "--tensor-parallel-size", "2", "--port", "8000", "--admin-port", "8001"),
        *("--api-key-file", "/var/run/secrets/kvasir/api-keys/keys"),
        *("--admin-token-file", "/var/run/secrets/kvasir/admin/token"),
        *("--drain-timeout", "90", "--log-format", "json", "--seed", "7"),
    ]
    assert fetch["args"] == [
        *("fetch", "s3://models/big", "/models/model", "--sha256", "0" * 64),
        *("--secret-dir", "/var/run/secrets/kvasir/source"),
    ]
    assert runtime["env"] == [
        *ENVIRONMENT[1:],
        {"name": "HOME", "value": "/somewhere"},
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
    ]
    assert runtime["resources"] == {
        "requests": {"memory": "32Gi", "cpu": 8, "nvidia.com/gpu": 2},
        "limits": {"memory": "64Gi", "nvidia.com/gpu": 2},
    }
    assert fetch["resources"] == {"requests": {"memory": "32Gi", "cpu": 8}, "limits": {"memory": "64Gi"}}
    assert spec["nodeSelector"] == {"pool": "gpu"}
    assert spec["tolerations"] == [
        toleration,
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
    ]
    assert spec["topologySpreadConstraints"] == [
        {
            "labelSelector": {"matchLabels": {"app.kubernetes.io/component": "runtime", "kvasir.dev/service": "tiny"}},
            **spread,
        }
    ]
    assert spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] == {
        "nodeSelectorTerms": [
            {
                "matchExpressions": [
                    {
                        "key": "nvidia.com/gpu.product",
                        "operator": "In",
                        "values": ["NVIDIA-A100-SXM4-80GB", "A100-SXM4-80GB"],
                    },
                    {"key": "nvidia.com/gpu.memory", "operator": "Gt", "values": ["81919"]},
                ]
            }
        ]
    }
    assert spec["serviceAccountName"] == "puller"
    assert spec["terminationGracePeriodSeconds"] == 105


def test_secrets_are_seen_by_the_container_that_needs_them(make_service: MakeService) -> None:
    """The engine, which runs what users send, cannot read the credentials of the model's source."""
    service = make_service(model={"source": {"uri": "s3://models/big", "secretName": "bucket"}})
    spec = build_pod(service.metadata, RevisionTemplate.of(service, SETTINGS), "p", SETTINGS)["spec"]
    [runtime], [fetch] = spec["containers"], spec["initContainers"]
    assert "source-secret" not in {mount["name"] for mount in runtime["volumeMounts"]}
    assert {mount["name"] for mount in fetch["volumeMounts"]} == {"tmp", "model", "source-secret"}
    assert {"name": "model", "mountPath": "/models"} in fetch["volumeMounts"], "the one that fetches writes"
    assert {"name": "model", "mountPath": "/models", "readOnly": True} in runtime["volumeMounts"]


def test_every_mount_has_its_volume(make_service: MakeService) -> None:
    for uri in ("pvc://models/tiny", "s3://models/tiny", "file:///srv/models/tiny"):
        settings = Settings(allow_file_sources=True, file_source_roots=["/srv/models"])
        service = make_service(uri)
        spec = build_pod(service.metadata, RevisionTemplate.of(service, settings), "p", settings)["spec"]
        volumes = [volume["name"] for volume in spec["volumes"]]
        mounted = {
            mount["name"] for each in spec["containers"] + spec["initContainers"] for mount in each["volumeMounts"]
        }
        assert mounted == set(volumes)
        assert len(volumes) == len(set(volumes))


@pytest.mark.parametrize(
    ("disk", "volume"),
    [
        ({"size": "10Gi"}, {"emptyDir": {"sizeLimit": str(math.ceil((10 << 30) * 1.05))}}),
        ({"size": "10Gi", "claimName": "kv"}, {"persistentVolumeClaim": {"claimName": "kv"}}),
    ],
)
def test_files_of_kv_blocks_have_a_volume(make_service: MakeService, disk: Manifest, volume: Manifest) -> None:
    """Of the pod, bounded somewhat above what the engine writes, or of a claim; the engine is told of both tiers."""
    service = make_service(engine={"kvOffload": {"host": "2Gi", "disk": disk}})
    spec = build_pod(service.metadata, RevisionTemplate.of(service, SETTINGS), "p", SETTINGS)["spec"]
    [runtime] = spec["containers"]
    assert {"name": "kv", **volume} in spec["volumes"]
    assert {"name": "kv", "mountPath": "/var/cache/kvasir/kv"} in runtime["volumeMounts"]
    arguments = " ".join(runtime["args"])
    assert f"--kv-offload-host {2 << 30} --kv-offload-disk /var/cache/kvasir/kv:{10 << 30}" in arguments


def test_a_source_that_the_settings_refuse_makes_no_pod(make_service: MakeService) -> None:
    service = make_service("file:///etc")
    with pytest.raises(ValueError, match="KVASIR_OPERATOR_ALLOW_FILE_SOURCES"):
        build_pod(service.metadata, RevisionTemplate.of(service, SETTINGS), "p", SETTINGS)


@pytest.mark.parametrize(
    ("timeout", "margin", "seconds"), [("5m", 15, 315), ("0s", 15, 15), ("250ms", 1, 2), ("1h30m", 30, 5430)]
)
def test_the_grace_period_is_the_drain_and_a_margin(
    make_service: MakeService, timeout: str, margin: float, seconds: int
) -> None:
    settings = Settings(drain_margin_seconds=margin)
    template = RevisionTemplate.of(make_service(drain={"timeout": timeout}), settings)
    assert grace_period(template, settings) == seconds


@pytest.mark.parametrize(
    ("volume", "storage", "expected"),
    [(None, None, None), ("10Gi", None, 10 << 30), (None, "4Gi", 4 << 30), ("10Gi", "4Gi", 4 << 30)],
)
def test_a_fetch_refuses_what_its_volume_cannot_hold(
    make_service: MakeService, volume: str | None, storage: str | None, expected: int | None
) -> None:
    """Else the kubelet would evict the pod half-way, again and again."""
    settings = Settings(model_volume_size=volume)
    limits = {"memory": "1Gi"} | ({"ephemeral-storage": storage} if storage else {})
    service = make_service(model={"source": {"uri": "s3://models/m"}}, resources={"limits": limits})
    spec = build_pod(service.metadata, RevisionTemplate.of(service, settings), "p", settings)["spec"]
    [fetch], [runtime] = spec["initContainers"], spec["containers"]
    found = {each["name"]: each["value"] for each in fetch["env"]}.get("KVASIR_FETCH_MAX_SIZE")
    assert found == (str(expected) if expected else None)
    assert runtime["env"] == ENVIRONMENT
