"""Every name, label, annotation, key and path that the operator gives to something. They are built here alone."""

from typing import Final

# Labels and annotations
SERVICE_LABEL: Final = "kvasir.dev/service"
"""Name of the InferenceService that an object belongs to."""
REVISION_LABEL: Final = "kvasir.dev/revision"
"""Digest of the template that a pod was made from."""
NAME_LABEL: Final = "app.kubernetes.io/name"
INSTANCE_LABEL: Final = "app.kubernetes.io/instance"
COMPONENT_LABEL: Final = "app.kubernetes.io/component"
MANAGED_BY_LABEL: Final = "app.kubernetes.io/managed-by"
DEFAULT_CONTAINER_ANNOTATION: Final = "kubectl.kubernetes.io/default-container"
"""Container that `kubectl logs` and `kubectl exec` take when none is named."""

ATTEMPT_ANNOTATION: Final = "kvasir.dev/attempt"
"""How many failed pods a pod follows in a row; the wait before the next one grows with it."""
PRODUCTS_ANNOTATION: Final = "kvasir.dev/products"
"""Products that a pod was placed on, separated by commas, where the operator chose them."""

# Annotations that users set on an InferenceService
ROLLBACK_ANNOTATION: Final = "kvasir.dev/rollback-to"
"""Number or name of an earlier revision that the pods are to have, or `previous`, for as long as it is there."""
RESTART_ANNOTATION: Final = "kvasir.dev/restarted-at"
"""Any text: another one makes a new revision with the same content."""

ADAPTERS_VERSION_ANNOTATION: Final = "kvasir.dev/adapters-version"
"""Any text: another one has the sources of all adapters looked at again."""

# Annotations of a ControllerRevision: what has to be remembered of its rollout
PROGRESS_ANNOTATION: Final = "kvasir.dev/progress-since"
"""The spec asks for the revision; the time from which its progress deadline counts."""
PAUSED_ANNOTATION: Final = "kvasir.dev/paused"
SERVED_ANNOTATION: Final = "kvasir.dev/served-at"
"""When all replicas first were of the revision and served."""
STEP_ANNOTATION: Final = "kvasir.dev/canary-steps-done"
STEP_SINCE_ANNOTATION: Final = "kvasir.dev/canary-step-since"
"""When the present step of the canary was reached."""
GOLDEN_ANNOTATION: Final = "kvasir.dev/golden-prompts"
"""What comparing golden prompts with the old revision gave; set when they agree."""
FAILURE_ANNOTATION: Final = "kvasir.dev/failure"
"""Why the revision was given up, as JSON, and which one took its place."""

OPERATOR: Final = "kvasir-operator"
"""The operator as field manager, as source of Events and in `app.kubernetes.io/managed-by`."""
RUNTIME: Final = "kvasir-runtime"
"""The runtime in `app.kubernetes.io/name`, and its command."""
RUNTIME_COMPONENT: Final = "runtime"
INSPECTION_COMPONENT: Final = "inspection"
"""Pods that look at a model before replicas are made."""

# The admission webhook: its Service and its Secret bear the same name
WEBHOOK: Final = "kvasir-operator-webhook"
WEBHOOK_CONFIGURATION: Final = "kvasir-operator"
"""The ValidatingWebhookConfiguration and the MutatingWebhookConfiguration."""

# Readiness gates of a pod, in the order in which they open
ADAPTERS_GATE: Final = "kvasir.dev/adapters"
WARM_GATE: Final = "kvasir.dev/warm"
SERVING_GATE: Final = "kvasir.dev/serving"
GATES: Final = (ADAPTERS_GATE, WARM_GATE, SERVING_GATE)

# Containers, volumes and ports of a pod
RUNTIME_CONTAINER: Final = "runtime"
FETCH_CONTAINER: Final = "fetch"
INSPECT_CONTAINER: Final = "inspect"
MODEL_VOLUME: Final = "model"
ADMIN_TOKEN_VOLUME: Final = "admin-token"  # noqa: S105 - a name
SOURCE_SECRET_VOLUME: Final = "source-secret"  # noqa: S105 - a name
API_KEYS_VOLUME: Final = "api-keys"
ADAPTER_VOLUME: Final = "adapters"
ADAPTER_SECRET_VOLUME: Final = "adapter-secret"  # noqa: S105 - a name
TMP_VOLUME: Final = "tmp"
SHM_VOLUME: Final = "shm"
KV_VOLUME: Final = "kv"
USER_PORT_NAME: Final = "http"
USER_PORT: Final = 8000
ADMIN_PORT_NAME: Final = "admin"
ADMIN_PORT: Final = 8001

# Paths in a container
MODELS_FOLDER: Final = "/models"
FETCHED_MODEL: Final = "/models/model"
ADAPTERS_FOLDER: Final = "/adapters"
ADAPTER_SECRETS_FOLDER: Final = "/var/run/secrets/kvasir/adapters"
ADAPTER_CACHE: Final = "/tmp/adapters"  # noqa: S108 - the pod's own emptyDir
ADMIN_TOKEN_FOLDER: Final = "/var/run/secrets/kvasir/admin"  # noqa: S105 - a path
SOURCE_SECRET_FOLDER: Final = "/var/run/secrets/kvasir/source"  # noqa: S105 - a path
API_KEYS_FOLDER: Final = "/var/run/secrets/kvasir/api-keys"
KV_FOLDER: Final = "/var/cache/kvasir/kv"
TERMINATION_LOG: Final = "/dev/termination-log"

FETCH_MAX_SIZE: Final = "KVASIR_FETCH_MAX_SIZE"
"""Variable of the container `fetch`: most bytes of a model."""

# Keys in Secrets
ADMIN_TOKEN_KEY: Final = "token"  # noqa: S105 - a key
API_KEYS_KEY: Final = "keys"
"""Key of `spec.router.apiKeysSecret` that holds one API key a line."""

# Node labels of NVIDIA's GPU feature discovery, and the taint that GPU nodes usually bear
GPU_PRODUCT_LABEL: Final = "nvidia.com/gpu.product"
GPU_MEMORY_LABEL: Final = "nvidia.com/gpu.memory"
GPU_TAINT: Final = "nvidia.com/gpu"
GPU_PRESENT_LABEL: Final = "nvidia.com/gpu.present"
MIG_PREFIX: Final = "nvidia.com/mig-"
"""How resources of MIG slices begin, and the labels that describe them."""

SUFFIX_LENGTH: Final = 5
"""Characters that tell the pods of a revision apart."""


def service_name(service: str) -> str:
    """The Service that users call bears the name of the InferenceService."""
    return service


def service_url(service: str, namespace: str) -> str:
    """Address of the OpenAI API within the cluster, without a path."""
    return f"http://{service_name(service)}.{namespace}.svc:{USER_PORT}"


def webhook_host(namespace: str) -> str:
    """Name under which the API server calls the webhook of an operator in that namespace."""
    return f"{WEBHOOK}.{namespace}.svc"


def admin_secret_name(service: str) -> str:
    """The Secret with the token of the operator port."""
    return f"{service}-admin"


def prefixes_secret_name(service: str) -> str:
    """The Secret with the prefixes that the service's replicas are asked for most."""
    return f"{service}-prefixes"


def revision_name(service: str, revision: str) -> str:
    """The ControllerRevision that keeps a revision's template."""
    return f"{service}-{revision}"


def network_policy_name(service: str) -> str:
    """The NetworkPolicy bears the name of the InferenceService."""
    return service


def budget_name(service: str) -> str:
    """The PodDisruptionBudget bears the name of the InferenceService."""
    return service


def pod_name(service: str, revision: str, suffix: str) -> str:
    """The name of a replica: `tiny-llama-3f9c2d41aa-x7k2p`."""
    return f"{service}-{revision}-{suffix}"


def inspection_pod_name(service: str, source_key: str) -> str:
    """The pod that looks at a source: `tiny-llama-inspect-3f9c2d41`."""
    return f"{service}-inspect-{source_key[:8]}"


def owned_labels(service: str) -> dict[str, str]:
    """Labels of every object that belongs to the service."""
    return {
        NAME_LABEL: RUNTIME,
        INSTANCE_LABEL: service,
        MANAGED_BY_LABEL: OPERATOR,
        SERVICE_LABEL: service,
    }


def replica_labels(service: str, revision: str) -> dict[str, str]:
    """Labels of a pod that runs the engine."""
    return owned_labels(service) | {COMPONENT_LABEL: RUNTIME_COMPONENT, REVISION_LABEL: revision}


def inspection_labels(service: str) -> dict[str, str]:
    """Labels of a pod that looks at the model; no replica, so no Service selects it."""
    return owned_labels(service) | {COMPONENT_LABEL: INSPECTION_COMPONENT}


def replica_selector(service: str) -> dict[str, str]:
    """Labels that tell the service's replicas from all other pods."""
    return {COMPONENT_LABEL: RUNTIME_COMPONENT, SERVICE_LABEL: service}


def selector_text(labels: dict[str, str]) -> str:
    """Write a selector as kubectl and the scale subresource do: `a=b,c=d`."""
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
