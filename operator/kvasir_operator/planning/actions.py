"""The values that a plan is made of. Each action says why it is there: it is logged, counted and shown with that.

An action names the pod by name and uid, so that it can never hit another pod that came to bear the same name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import ClassVar

from kvasir_runtime.contract.admin_api import AdapterSet


class Why(StrEnum):
    """Why an action is in the plan."""

    MISSING = "Missing"
    OUTDATED = "Outdated"
    SCALE_UP = "ScaleUp"
    SCALE_DOWN = "ScaleDown"
    REPLACE = "Replace"
    ROLLOUT = "Rollout"
    ROLLBACK = "Rollback"
    NODE_DRAIN = "NodeDrain"
    ASKED_FOR = "AskedFor"
    NOT_ASKED_FOR = "NotAskedFor"
    PAUSED = "Paused"
    RESUMED = "Resumed"
    CANARY = "Canary"
    COMPLETE = "Complete"
    FAILED = "Failed"
    COMPARE = "Compare"
    HISTORY_LIMIT = "HistoryLimit"
    READY = "Ready"
    RESTARTED = "Restarted"
    LEFT_ENDPOINTS = "LeftEndpoints"
    DRAINED = "Drained"
    DRAIN_DEADLINE = "DrainDeadline"
    NO_REQUESTS = "NoRequests"
    DEMAND_RETURNED = "DemandReturned"
    PREEMPTED = "Preempted"
    HELD_BACK = "HeldBack"
    MISPLACED = "Misplaced"
    GROUP_WAITS = "GroupWaits"
    INSPECT = "Inspect"
    INSPECTED = "Inspected"
    RETRY = "Retry"
    LOADING = "Loading"
    COLLECT = "Collect"


@dataclass(frozen=True, slots=True)
class ApplySecret:
    """Make the Secret with the token of the operator port, which is drawn then, or mend it."""

    kind: ClassVar[str] = "ApplySecret"
    why: Why
    pod: str = ""


@dataclass(frozen=True, slots=True)
class ApplyService:
    """Make the Service, or bring it back to what it should be."""

    kind: ClassVar[str] = "ApplyService"
    why: Why
    pod: str = ""


@dataclass(frozen=True, slots=True)
class ApplyNetworkPolicy:
    """Make the NetworkPolicy, or bring it back to what it should be."""

    kind: ClassVar[str] = "ApplyNetworkPolicy"
    why: Why
    pod: str = ""


@dataclass(frozen=True, slots=True)
class ApplyBudget:
    """Make the PodDisruptionBudget, or bring it back to what it should be."""

    kind: ClassVar[str] = "ApplyBudget"
    why: Why
    pod: str = ""


@dataclass(frozen=True, slots=True)
class KeepRevision:
    """Keep the template of the spec as a ControllerRevision."""

    kind: ClassVar[str] = "KeepRevision"
    revision: str
    number: int
    marks: Mapping[str, str]
    why: Why = Why.ASKED_FOR
    pod: str = ""


@dataclass(frozen=True, slots=True)
class MarkRevision:
    """Note something about a revision: annotations by key, None takes one away; `number` where it rises."""

    kind: ClassVar[str] = "MarkRevision"
    revision: str
    uid: str
    marks: Mapping[str, str | None]
    why: Why
    number: int | None = None
    pod: str = ""


@dataclass(frozen=True, slots=True)
class DropRevision:
    """Forget a revision that nobody will go back to."""

    kind: ClassVar[str] = "DropRevision"
    revision: str
    uid: str
    why: Why = Why.HISTORY_LIMIT
    pod: str = ""


@dataclass(frozen=True, slots=True)
class CompareGoldens:
    """Ask a pod of the new and one of the old revision for golden prompts, and note on the new one what came out."""

    kind: ClassVar[str] = "CompareGoldens"
    pod: str
    ip: str
    revision: str
    uid: str
    against: str
    against_ip: str
    against_revision: str
    prompts: tuple[str, ...]
    tolerance: float
    why: Why = Why.COMPARE


@dataclass(frozen=True, slots=True)
class CreatePod:
    """Make a replica of `revision`. `attempt` failed pods came before it."""

    kind: ClassVar[str] = "CreatePod"
    pod: str
    revision: str
    why: Why
    attempt: int = 0
    replaces: str = ""
    products: tuple[str, ...] = ()
    """Products that it may go to; empty: any that the spec allows."""


@dataclass(frozen=True, slots=True)
class CreateInspection:
    """Make the pod that looks at the model of source key `source`."""

    kind: ClassVar[str] = "CreateInspection"
    pod: str
    source: str
    why: Why = Why.INSPECT


@dataclass(frozen=True, slots=True)
class DeletePod:
    kind: ClassVar[str] = "DeletePod"
    pod: str
    uid: str
    why: Why


@dataclass(frozen=True, slots=True)
class GateState:
    """What a readiness gate is to say."""

    open: bool
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class SetGates:
    """Set readiness gates of a pod in one write."""

    kind: ClassVar[str] = "SetGates"
    pod: str
    uid: str
    gates: Mapping[str, GateState]
    why: Why


@dataclass(frozen=True, slots=True)
class TellAdapters:
    """Tell an engine the whole set of adapters that it is to serve; what has failed is tried again."""

    kind: ClassVar[str] = "TellAdapters"
    pod: str
    uid: str
    ip: str
    wanted: AdapterSet
    why: Why


@dataclass(frozen=True, slots=True)
class ServingPod:
    """A replica that can be asked for prefixes, or to compute them. `tokenizer` is the digest of its tokenizer."""

    name: str
    ip: str
    revision: str
    tokenizer: str


@dataclass(frozen=True, slots=True)
class WarmUp:
    """Begin to compute prompts on a pod whose gates wait for that; `adapters` are those that it serves."""

    kind: ClassVar[str] = "WarmUp"
    pod: str
    uid: str
    ip: str
    boot_id: str
    tokenizer: str
    adapters: frozenset[str]
    timeout_s: float
    why: Why


@dataclass(frozen=True, slots=True)
class KeepPrefixes:
    """Collect the hottest prefixes of replicas and keep them; `basis` is what those had computed by then."""

    kind: ClassVar[str] = "KeepPrefixes"
    pods: tuple[ServingPod, ...]
    basis: frozenset[tuple[str, str, int]]
    why: Why = Why.COLLECT
    pod: str = ""


@dataclass(frozen=True, slots=True)
class HandOverPrefixes:
    """Begin to compute the hottest prefixes of a replica that goes on those that stay."""

    kind: ClassVar[str] = "HandOverPrefixes"
    pod: str
    uid: str
    victim: ServingPod
    survivors: tuple[ServingPod, ...]
    timeout_s: float
    why: Why


@dataclass(frozen=True, slots=True)
class SetReplicas:
    """Write `spec.replicas` through the scale subresource, as automatic scaling decided."""

    kind: ClassVar[str] = "SetReplicas"
    replicas: int
    why: Why
    pod: str = ""


@dataclass(frozen=True, slots=True)
class Drain:
    """Tell the engine to take no more requests; running ones may go on for `timeout_s` seconds."""

    kind: ClassVar[str] = "Drain"
    pod: str
    uid: str
    ip: str
    timeout_s: float
    why: Why


@dataclass(frozen=True, slots=True)
class Undrain:
    """Tell the engine to take requests again."""

    kind: ClassVar[str] = "Undrain"
    pod: str
    uid: str
    ip: str
    why: Why


WarmthAction = WarmUp | KeepPrefixes | HandOverPrefixes
RevisionAction = KeepRevision | MarkRevision | DropRevision | CompareGoldens
Action = (
    ApplySecret
    | ApplyService
    | ApplyBudget
    | ApplyNetworkPolicy
    | CreatePod
    | CreateInspection
    | DeletePod
    | SetGates
    | SetReplicas
    | Drain
    | Undrain
    | TellAdapters
    | WarmthAction
    | RevisionAction
)


def identity(action: Action) -> str:
    """The same text for the same write, planned again: the key of its backoff."""
    match action:
        case KeepRevision() | MarkRevision() | DropRevision():
            return f"{action.kind}/{action.revision}"
        case _:
            return f"{action.kind}/{action.pod}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now, in this order, and when to look again at the latest because something comes due."""

    actions: tuple[Action, ...] = ()
    due: datetime | None = None

    @property
    def empty(self) -> bool:
        return not self.actions


@dataclass(frozen=True, slots=True)
class Note:
    """A Kubernetes Event about the service: few, for people."""

    reason: str
    message: str
    warning: bool = False
