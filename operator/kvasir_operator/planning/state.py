"""What was observed of one service, as plain values. Nothing here touches the network, nothing is ever changed.

What could not be observed is `Unknown`, which is not zero: a pod that does not answer may be full of requests.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final

from kvasir_operator.api.field_errors import FieldError
from kvasir_operator.api.status import InspectionStatus
from kvasir_operator.api.v1alpha1 import InferenceServiceSpec, InferenceServiceStatus, ObjectMeta, ScalingStatus
from kvasir_operator.fleet.adapters import AdapterWish
from kvasir_operator.placement.outlook import Outlook
from kvasir_operator.placement.queue import Standing
from kvasir_operator.planning.revisions import Heading, Revision, Target, choose_target
from kvasir_operator.resources import names
from kvasir_operator.resources.template_hash import RevisionTemplate
from kvasir_operator.scaling.evaluate import Evaluation
from kvasir_operator.scaling.ownership import Claims
from kvasir_runtime.contract.admin_api import AdapterReports, AdminState, Phase, WarmupState


@dataclass(frozen=True, slots=True)
class Unknown:
    """Something that could not be observed, and why; `status` is the HTTP status of a refusal."""

    reason: str
    status: int = 0


NOT_ASKED: Final = Unknown("not asked")


class PodPhase(StrEnum):
    """`status.phase` of a pod."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True)
class PodCondition:
    """One entry of `status.conditions` of a pod; readiness gates are such entries too."""

    status: str
    reason: str = ""
    message: str = ""
    since: datetime | None = None

    @property
    def holds(self) -> bool:
        return self.status == "True"


@dataclass(frozen=True, slots=True)
class Termination:
    """How a container's process ended; `message` is what it left in its termination log."""

    exit_code: int
    reason: str = ""
    message: str = ""
    finished_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Container:
    """One container of a pod: waiting (with a reason), running, or ended."""

    name: str
    init: bool = False
    running: bool = False
    ready: bool = False
    restarts: int = 0
    waiting_reason: str = ""
    waiting_message: str = ""
    ended: Termination | None = None
    ended_before: Termination | None = None

    @property
    def last_end(self) -> Termination | None:
        """How its latest process ended, the present one first."""
        return self.ended or self.ended_before


@dataclass(frozen=True, slots=True)
class PodWarning:
    """A Warning that Kubernetes recorded about a pod, such as FailedMount."""

    reason: str
    message: str


class Stage(StrEnum):
    """Where a pod stands in its life, as far as planning is concerned."""

    STARTING = "Starting"
    SERVING = "Serving"
    UNREADY = "Unready"
    DRAINING = "Draining"
    FINISHED = "Finished"
    LEAVING = "Leaving"


DRAINING_REASON: Final = "Draining"
"""Reason on the serving gate of a pod that is being emptied; its time is when that began."""


@dataclass(frozen=True, slots=True)
class Warming:
    """The last warmup of a process: `words` say how it went, `error` what went wrong, `failures` how often in a row."""

    boot_id: str
    begun_at: datetime
    ended_at: datetime | None = None
    result: WarmupState | None = None
    words: str = ""
    error: str = ""
    failures: int = 0


@dataclass(frozen=True, slots=True)
class HandOver:
    """A replica that goes hands its hottest prefixes over; `words` say how that went."""

    begun_at: datetime
    ended_at: datetime | None = None
    words: str = ""


@dataclass(frozen=True, slots=True)
class Collected:
    """When prefixes were last collected, and what the replicas had computed by then."""

    at: datetime
    basis: frozenset[tuple[str, str, int]]


@dataclass(frozen=True, slots=True)
class Pod:
    """One pod of the service. `attempt` counts the failed pods that it follows, for the backoff.

    `products` are those that it may go to, where the operator chose; `silent_since` is when its node was last heard of.
    """

    name: str
    uid: str
    revision: str
    created_at: datetime
    phase: PodPhase = PodPhase.PENDING
    reason: str = ""
    message: str = ""
    deleting: bool = False
    ip: str = ""
    node: str = ""
    attempt: int = 0
    conditions: Mapping[str, PodCondition] = field(default_factory=dict)
    containers: tuple[Container, ...] = ()
    warnings: tuple[PodWarning, ...] = ()
    products: tuple[str, ...] = ()
    silent_since: datetime | None = None
    runtime: AdminState | Unknown = NOT_ASKED
    adapters: AdapterReports | Unknown = NOT_ASKED
    warming: Warming | None = None
    handover: HandOver | None = None

    def condition(self, kind: str) -> PodCondition:
        """That condition; status Unknown where it was never set."""
        return self.conditions.get(kind, PodCondition("Unknown"))

    @property
    def ready(self) -> bool:
        """Whether the kubelet and all gates say so: it is among the endpoints."""
        return self.condition("Ready").holds

    @property
    def serving_gate(self) -> PodCondition | None:
        """None where it was never opened."""
        return self.conditions.get(names.SERVING_GATE)

    @property
    def server(self) -> Container | None:
        """The container that runs the engine; None until the kubelet speaks of it."""
        return next((each for each in self.containers if each.name == names.RUNTIME_CONTAINER), None)

    @property
    def has_process(self) -> bool:
        """Whether an engine may be running. False only when the kubelet says that there is none."""
        server = self.server
        return server.running if server is not None else bool(self.ip)

    @property
    def in_crash_loop(self) -> bool:
        """Whether the kubelet waits before it starts the engine again, because it ended too often."""
        server = self.server
        return server is not None and server.waiting_reason == "CrashLoopBackOff"

    @property
    def serves_now(self) -> bool:
        """Whether the engine itself said that it takes requests."""
        runtime = self.runtime
        return isinstance(runtime, AdminState) and runtime.startup.phase is Phase.SERVING and not runtime.draining

    @property
    def adapter_places(self) -> int:
        """How many adapters the engine's memory holds; 0 where it serves none, or nothing is known."""
        runtime = self.runtime
        return runtime.capacity.max_adapters if isinstance(runtime, AdminState) and runtime.capacity is not None else 0

    # | deletion asked | phase            | serving gate      | Ready | stage    |
    # |----------------|------------------|-------------------|-------|----------|
    # | yes            | any              | any               | any   | LEAVING  |
    # | no             | Failed/Succeeded | any               | any   | FINISHED |
    # | no             | other            | False by Draining | any   | DRAINING |
    # | no             | other            | never set         | any   | STARTING |
    # | no             | other            | True              | True  | SERVING  |
    # | no             | other            | otherwise         |       | UNREADY  |
    @property
    def stage(self) -> Stage:
        """The first line of the table above that holds."""
        gate = self.serving_gate
        if self.deleting:
            return Stage.LEAVING
        if self.phase in (PodPhase.FAILED, PodPhase.SUCCEEDED):
            return Stage.FINISHED
        if gate is None:
            return Stage.STARTING
        if not gate.holds and gate.reason == DRAINING_REASON:
            return Stage.DRAINING
        return Stage.SERVING if gate.holds and self.ready else Stage.UNREADY

    @property
    def stays(self) -> bool:
        """Whether it counts as a replica: it serves, or is going to."""
        return self.stage in (Stage.STARTING, Stage.SERVING, Stage.UNREADY)


class ObjectState(StrEnum):
    """How an object that the service needs compares with what it should be."""

    MISSING = "missing"
    OUTDATED = "outdated"
    CURRENT = "current"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A write that failed at the last try: what it was for, and what the API server or the pod said."""

    action: str
    pod: str
    message: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Inspection:
    """How far the look at the model is. `key` names its source; empty: it is not to be looked at.

    `known` is what was found out before, by whichever service; `elsewhere` since when another one's pod looks.
    """

    key: str = ""
    known: InspectionStatus | None = None
    pods: tuple[Pod, ...] = ()
    elsewhere: datetime | None = None


@dataclass(frozen=True, slots=True)
class Scaling:
    """Automatic scaling at one look: what the status is to say, who else sets the replicas, what the load asks."""

    status: ScalingStatus | None = None
    owner: str = ""
    evaluation: Evaluation | None = None


@dataclass(frozen=True, slots=True)
class Timings:
    """Waits that planning knows of, in seconds."""

    endpoint_settle: float = 3.0
    """Between a pod's leaving the endpoints and its drain: kube-proxies apply the change within about a second."""
    endpoint_settle_limit: float = 15.0
    """When the kubelet does not confirm that the pod is unready, drain it all the same."""
    backoff_base: float = 10.0
    """Wait before the second replacement of pods that keep failing; doubled each time, as the kubelet does."""
    backoff_limit: float = 300.0
    """Longest such wait, the kubelet's own bound."""
    backoff_reset: float = 600.0
    """A pod that lived this long did not fail because of how it was made: the count starts anew."""
    surge_patience: float = 30.0
    """A new pod that found no room for so long does not wait for one that leaves: replicas are replaced in place."""
    adapters_patience: float = 120.0
    """A new pod takes traffic without the adapters that have not come for so long: others must not wait for them."""
    warmup_grace: float = 5.0
    """An engine ends a warmup by itself when its time is over, and has so long to say so."""
    collect_every: float = 60.0
    """Between two collections of prefixes, whose heat halves in ten minutes."""
    hand_over: float = 30.0
    """Time for handing prefixes over before a replica drains, which goes on taking requests meanwhile."""
    broken_after: float = 30.0
    """Age at which a pod is believed that its model, or what it needs, is broken: until then it may be on its way."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that planning looks at: one service and what belongs to it.

    `spec` and `template` are None where the object could not be read. `source_errors` are what the operator's settings
    say against the model's source: the object itself is sound.
    `standing` is where the service stands in the queue for devices; None where no pod of its waits for some.
    `claims` say who set `spec.replicas`; `autoscaling` is what automatic scaling makes of it, None before it looked.
    `history` are the revisions that are kept; `cordoned` the nodes that no pod may go to any more.
    `adapter_wishes` are the adapters of the spec; `routed`: requests pass a router that finds the replica that has
    theirs.
    `collected` is when prefixes were last collected.
    `taken_names` are pods that are not the service's own but have names that it might choose.
    """

    meta: ObjectMeta
    spec: InferenceServiceSpec | None
    status: InferenceServiceStatus
    template: RevisionTemplate | None = None
    revision: str = ""
    errors: tuple[FieldError, ...] = ()
    source_errors: tuple[FieldError, ...] = ()
    pods: tuple[Pod, ...] = ()
    taken_names: frozenset[str] = frozenset()
    service: ObjectState = ObjectState.MISSING
    secret: ObjectState = ObjectState.MISSING
    budget: ObjectState = ObjectState.MISSING
    network_policy: ObjectState = ObjectState.CURRENT
    history: tuple[Revision, ...] = ()
    cordoned: frozenset[str] = frozenset()
    refusals: tuple[Refusal, ...] = ()
    standing: Standing | None = None
    inspection: Inspection = Inspection()
    outlook: Outlook = field(default_factory=Outlook)
    claims: Claims = field(default_factory=Claims)
    autoscaling: Scaling | None = None
    collected: Collected | None = None
    adapter_wishes: tuple[AdapterWish, ...] = ()
    routed: bool = False
    timings: Timings = Timings()

    @property
    def acceptable(self) -> bool:
        """Whether pods may be made and removed for this spec."""
        return self.spec is not None and not self.errors and not self.source_errors

    @property
    def current(self) -> Revision | None:
        """What is kept of the revision that the spec asks for."""
        return self.kept(self.revision)

    def kept(self, name: str) -> Revision | None:
        """What is kept of a revision."""
        return next((each for each in self.history if each.name == name), None)

    @property
    def live_revisions(self) -> frozenset[str]:
        """Revisions of which a pod serves."""
        return frozenset(pod.revision for pod in self.pods if pod.stage is Stage.SERVING)

    @property
    def target(self) -> Target:
        """The revision that pods are to have, and why."""
        if self.spec is None:
            return Target(self.revision, Heading.SPEC, self.current)
        return choose_target(self.meta, self.spec, self.revision, self.history, self.live_revisions)

    def template_of(self, revision: str) -> RevisionTemplate | None:
        """What pods of a revision are made from; None where that is not known."""
        if revision == self.revision and self.template is not None:
            return self.template
        kept = self.kept(revision)
        return kept.template if kept is not None else None

    @property
    def pod_names(self) -> frozenset[str]:
        """Every name that a new pod cannot have."""
        return self.taken_names | {pod.name for pod in self.pods}
