"""Settings of the operator: one field here, one environment variable `KVASIR_OPERATOR_…`.

Every field has its unit in the name or the description, a default, and the reason for that default. A value that
cannot be read is refused at start with the variable, the bound and the value; nothing falls back silently.
"""

import itertools
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, NonNegativeFloat, ValidationError, model_validator

from kvasir_operator.api.base import Quantity
from kvasir_operator.api.field_errors import problem_of
from kvasir_operator.api.kubernetes import ResourceRequirements
from kvasir_runtime.contract.quantities import parse_duration

ENV_PREFIX: Final = "KVASIR_OPERATOR_"


class SettingsError(ValueError):
    """Some variables cannot be used; one line each."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


def _split_commas(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _read_json(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        message = f"must be a JSON object, got {value!r}: {error}"
        raise ValueError(message) from None


def _read_seconds(value: object) -> object:
    if isinstance(value, str) and value.replace(".", "", 1).isdecimal():
        return float(value)
    return parse_duration(value) if isinstance(value, str) else value


Names = Annotated[list[str], BeforeValidator(_split_commas)]
Seconds = Annotated[float, BeforeValidator(_read_seconds)]
Resources = Annotated[ResourceRequirements, BeforeValidator(_read_json)]
Costs = Annotated[dict[str, NonNegativeFloat], BeforeValidator(_read_json)]


class Settings(BaseModel):
    """What the operator may be told; unset is the default."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    # What it looks after
    namespaces: Names = Field(
        default=[],
        description="Namespaces whose InferenceServices are looked after, separated by commas. Empty: all of them, "
        "since one operator a cluster is the usual case.",
    )
    namespace: str = Field(
        default="kvasir-system",
        min_length=1,
        description="Namespace of the operator itself, where its Lease is. The manifests set it from the pod.",
    )
    identity: str = Field(
        default="", description="Name under which this process holds the Lease. Empty: host name and process id."
    )

    # The pods it makes
    runtime_image: str = Field(
        default="docker.io/kvasir/runtime:dev",
        min_length=1,
        description="Image of the runtime where a service names none. The default is what `make images` builds.",
    )
    runtime_image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        default="IfNotPresent",
        description="When nodes pull the runtime's image. A tag that never moves needs one pull per node.",
    )
    cpu_resources: Resources = Field(
        default=ResourceRequirements(requests={"cpu": "2", "memory": "4Gi"}, limits={"cpu": "2", "memory": "4Gi"}),
        description="Resources of a replica on CPUs, as JSON, taken one by one where a service sets none. Equal "
        "requests and limits, since engine threads and KV cache are planned from the limits.",
    )
    gpu_resources: Resources = Field(
        default=ResourceRequirements(requests={"cpu": "4", "memory": "16Gi"}, limits={"memory": "32Gi"}),
        description="Resources for each device of a replica on GPUs, as JSON, multiplied by the count. No CPU limit, "
        "since throttling the scheduling thread idles the device.",
    )
    shm_size: Quantity = Field(
        default=Quantity("1Gi"),
        description="Most bytes in /dev/shm, which is counted as memory of the pod. NCCL needs some MiB per device.",
    )
    model_volume_size: Quantity | None = Field(
        default=None,
        description="Most bytes that a fetched model may take on its node. Unset: what the node has, since models "
        "differ a thousandfold.",
    )
    inspect_models: bool = Field(
        default=True,
        description="Whether a short pod looks at a model's config.json before replicas are made, so that one that "
        "cannot fit is refused with the numbers. Off: the engines find out.",
    )
    product_costs: Costs = Field(
        default={},
        description='What a device costs, by product, as JSON such as {"NVIDIA-L4": 0.7}; any unit. The cheapest '
        "product that a model fits on is taken; those without a cost come last, the smallest memory first.",
    )
    allow_file_sources: bool = Field(
        default=False,
        description="Whether file:// models may be mounted from nodes. Off, since host paths cross the border "
        "between tenants.",
    )
    file_source_roots: Names = Field(
        default=[],
        description="Folders of the nodes that file:// models must lie in, separated by commas. Empty: none.",
    )
    network_policies: bool = Field(
        default=True,
        description="Whether each service gets a NetworkPolicy that keeps the operator port to the operator. Off where "
        "policies are managed by others.",
    )
    startup_timeout_seconds: Seconds = Field(
        default=3600.0,
        ge=10,
        le=86_400,
        description="Time in which an engine must have loaded its model before the kubelet starts it again. 400 GB "
        "from a disk of 200 MB/s take half of it.",
    )
    drain_margin_seconds: Seconds = Field(
        default=15.0,
        ge=1,
        le=600,
        description="Time that a pod keeps after its drain timeout to send its last bytes and end. Seconds suffice.",
    )

    # How often it looks
    resync_seconds: Seconds = Field(
        default=60.0,
        ge=1,
        le=3600,
        description="Time between two looks at a service of which no event came and where nothing runs. Heals what a "
        "lost event left behind; asking the engines is what thousands of idle services cost.",
    )
    scrape_seconds: Seconds = Field(
        default=5.0,
        ge=0.5,
        le=300,
        description="Time between two readings of a pod's /admin/state. Short against the minutes in which load moves.",
    )
    scrape_timeout_seconds: Seconds = Field(
        default=2.0,
        ge=0.1,
        le=60,
        description="Time in which a pod must answer before its state counts as unknown. A busy pod answers in "
        "milliseconds.",
    )
    api_timeout_seconds: Seconds = Field(
        default=15.0, ge=1, le=300, description="Time in which the API server must answer. Longer than its own retries."
    )
    backoff_initial_seconds: Seconds = Field(
        default=0.5, ge=0.05, le=60, description="Wait after the first failed attempt at a service; doubles each time."
    )
    backoff_max_seconds: Seconds = Field(
        default=60.0, ge=1, le=3600, description="Longest wait between attempts, so that repairs are seen in a minute."
    )
    max_concurrent_reconciles: int = Field(
        default=32,
        ge=1,
        le=1024,
        description="Services that are worked on at the same time. Bounds open requests to the API server.",
    )

    # Who leads
    leader_election: bool = Field(
        default=True, description="Whether a Lease decides which operator acts. Off only for development by hand."
    )
    lease_name: str = Field(default="kvasir-operator", min_length=1, max_length=253, description="Name of the Lease.")
    lease_duration_seconds: Seconds = Field(
        default=15.0, ge=2, le=600, description="Time after which a silent leader is replaced. As in Kubernetes itself."
    )
    lease_renew_deadline_seconds: Seconds = Field(
        default=10.0,
        ge=1,
        le=600,
        description="Time after which a leader that cannot renew its Lease stops acting; less than the duration.",
    )
    lease_retry_seconds: Seconds = Field(
        default=2.0,
        ge=0.1,
        le=60,
        description="Time between attempts to get or renew the Lease; less than the deadline.",
    )

    # How it is seen
    health_port: int = Field(default=8081, ge=1, le=65535, description="Port of /livez and /readyz.")
    metrics_port: int = Field(default=8080, ge=1, le=65535, description="Port of /metrics.")
    webhook: bool = Field(
        default=False,
        description="Whether InferenceServices get defaults and are checked before they are stored. Off, since it "
        "needs the objects of manifests/components/webhook, which turns it on; conditions say the same without it.",
    )
    webhook_port: int = Field(
        default=9443, ge=1, le=65535, description="Port of the admission webhook, where it is on; HTTPS."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least level that is logged. info is one line a decision."
    )
    log_format: Literal["auto", "json", "pretty"] = Field(
        default="auto", description="auto: pretty on a terminal, else JSON lines for log collectors."
    )

    @model_validator(mode="after")
    def _check_across_fields(self) -> Self:
        problems = list(_contradictions(self))
        if problems:
            raise SettingsError(problems)
        return self

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """Read the variables that are set; raises SettingsError that names each bad one, its bound and its value."""
        given = {name: environ[env_name(name)] for name in cls.model_fields if env_name(name) in environ}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise SettingsError(map(_explain, error.errors())) from None


def env_name(field: str) -> str:
    """`scrape_seconds` → `KVASIR_OPERATOR_SCRAPE_SECONDS`."""
    return ENV_PREFIX + field.upper()


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Variables with our prefix that no setting bears: a slip of the pen, or a setting of another version."""
    known = {env_name(name) for name in Settings.model_fields}
    return sorted(name for name in environ if name.startswith(ENV_PREFIX) and name not in known)


def _contradictions(settings: Settings) -> Iterable[str]:
    if settings.lease_renew_deadline_seconds >= settings.lease_duration_seconds:
        yield _bound("lease_renew_deadline_seconds", "less than", "lease_duration_seconds", settings)
    if settings.lease_retry_seconds >= settings.lease_renew_deadline_seconds:
        yield _bound("lease_retry_seconds", "less than", "lease_renew_deadline_seconds", settings)
    if settings.backoff_initial_seconds > settings.backoff_max_seconds:
        yield _bound("backoff_initial_seconds", "at most", "backoff_max_seconds", settings)
    for field, other in itertools.combinations(("health_port", "metrics_port", "webhook_port"), 2):
        if getattr(settings, field) == getattr(settings, other):
            yield _bound(other, "different from", field, settings)
    for root in settings.file_source_roots:
        if not root.startswith("/") or ".." in root.split("/"):
            yield f"{env_name('file_source_roots')}: must be absolute paths without '..', got {root!r}"
    if settings.allow_file_sources and not settings.file_source_roots:
        switch = env_name("allow_file_sources")
        yield f"{env_name('file_source_roots')}: must name at least one folder when {switch} is on"


def _bound(field: str, relation: str, other: str, settings: Settings) -> str:
    value, limit = getattr(settings, field), getattr(settings, other)
    return f"{env_name(field)}: must be {relation} {env_name(other)} ({limit:g}), got {value:g}"


def _explain(error: Mapping[str, Any]) -> str:
    location = [str(part) for part in error["loc"]]
    if not location:
        return str(error["ctx"]["error"])
    inner = "".join(f".{part}" for part in location[1:])
    return f"{env_name(location[0])}{inner}: {problem_of(error)}"
