"""What the conditions and the numbers of a status are computed from, counted once."""

from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property

from kvasir_operator.api.conditions import ConditionType
from kvasir_operator.api.v1alpha1 import AdapterStatus, LastFailure
from kvasir_operator.fleet.adapters import statuses
from kvasir_operator.placement.capacity import Misfit
from kvasir_operator.planning.adapters import told
from kvasir_operator.planning.failures import (
    TABLE,
    Failure,
    failure_of,
    failure_of_misfit,
    failure_of_refusal,
    failure_of_source,
    worst,
)
from kvasir_operator.planning.replicas import wanted_replicas
from kvasir_operator.planning.revisions import Target
from kvasir_operator.planning.state import Pod, Snapshot, Stage
from kvasir_runtime.contract.admin_api import AdminState


@dataclass(frozen=True)
class Facts:
    """Groups of pods and the failure to show, from one snapshot at `now`."""

    snapshot: Snapshot
    now: datetime

    @cached_property
    def wanted(self) -> int | None:
        """Replicas that should serve; None where the spec cannot be read."""
        return wanted_replicas(self.snapshot.spec) if self.snapshot.spec is not None else None

    @cached_property
    def staying(self) -> list[Pod]:
        return [pod for pod in self.snapshot.pods if pod.stays]

    @cached_property
    def serving(self) -> list[Pod]:
        return [pod for pod in self.staying if pod.stage is Stage.SERVING]

    @cached_property
    def waiting(self) -> list[Pod]:
        """Pods that are to serve and do not yet, or not at the moment."""
        return [pod for pod in self.staying if pod.stage is not Stage.SERVING]

    @cached_property
    def updated(self) -> list[Pod]:
        return [pod for pod in self.staying if pod.revision == self.snapshot.revision]

    @cached_property
    def target(self) -> Target:
        """The revision that pods are to have, and why."""
        return self.snapshot.target

    @cached_property
    def outdated(self) -> list[Pod]:
        """Pods of other revisions than they are to have, those that drain included."""
        return [
            pod
            for pod in self.snapshot.pods
            if pod.revision != self.target.name and (pod.stays or pod.stage is Stage.DRAINING)
        ]

    @cached_property
    def paused(self) -> bool:
        """Whether a rollout stands still that would otherwise go on."""
        return self.snapshot.spec is not None and self.snapshot.spec.rollout.paused and bool(self.outdated)

    def called(self, revision: str) -> str:
        """A revision for people: `revision 3 (3f9c2d41aa)`."""
        kept = self.snapshot.kept(revision)
        return str(kept) if kept is not None else f"revision {revision}"

    @cached_property
    def draining(self) -> list[Pod]:
        return [pod for pod in self.snapshot.pods if pod.stage is Stage.DRAINING]

    @cached_property
    def failure(self) -> Failure | None:
        """The failure to show: of the source, of pods, of the rollout, of writes."""
        return self.present_failure or self.rollout_failure or worst(map(failure_of_refusal, self.snapshot.refusals))

    def failure_by(self, kind: ConditionType) -> Failure | None:
        """What makes this condition false: the failure to show if it does, else another one of the newest revision."""
        if self.failure is not None and TABLE[self.failure.cause].condition is kind:
            return self.failure
        newest = [pod for pod in self.staying if pod.revision == self.snapshot.revision]
        return worst(found for found in _failures(newest) if TABLE[found.cause].condition is kind)

    @cached_property
    def present_failure(self) -> Failure | None:
        """A refused source, or a failure of pods: of the newest revision before others."""
        if self.snapshot.source_errors:
            return failure_of_source(self.snapshot.source_errors)
        considered = [pod for pod in self.snapshot.pods if pod.stays or pod.stage is Stage.FINISHED]
        newest = [pod for pod in considered if pod.revision == self.snapshot.revision]
        misfit = [failure_of_misfit(self.misfit)] if self.misfit is not None else []
        found = worst(_failures(newest)) or worst(misfit) or worst(_failures(considered))
        return _in_full_words(found, self.snapshot.status.last_failure) if found is not None else None

    @cached_property
    def rollout_failure(self) -> Failure | None:
        """Why the revision that the spec asks for was given up, or gets on no more."""
        current = self.snapshot.current
        if current is None or current.failure is None or not current.asked:
            return None
        found = current.failure
        back = f"; replicas are of {self.called(found.back_to)} again" if self.target.name == found.back_to else ""
        message = f"{current} failed: {found.message}{back}"
        return Failure(found.pod, found.cause, message, found.remedy, found.time)

    @cached_property
    def misfit(self) -> Misfit | None:
        """Why the model fits on nothing that is there; a replica that exists has to say so itself."""
        return self.snapshot.outlook.misfit if not self.updated and self.wanted else None

    @cached_property
    def adapters(self) -> list[AdapterStatus]:
        """How each adapter of the spec fares: over the replicas of the target revision, where it has some."""
        replicas, before = list(told(self.snapshot, self.now)), self.snapshot.status.adapters
        current = {pod.name for pod in self.staying if pod.revision == self.target.name}
        return statuses(
            self.snapshot.adapter_wishes, [each for each in replicas if each.pod in current] or replicas, before
        )

    @cached_property
    def measured(self) -> AdminState | None:
        """What one engine says that has loaded its model, of the newest revision if there is one."""
        loaded = [pod for pod in self.staying if _has_capacity(pod)]
        loaded.sort(key=lambda pod: (pod.revision != self.snapshot.revision, pod.name))
        return loaded[0].runtime if loaded and isinstance(loaded[0].runtime, AdminState) else None


def _failures(pods: list[Pod]) -> list[Failure]:
    return [found for pod in pods if (found := failure_of(pod)) is not None]


def _in_full_words(failure: Failure, before: LastFailure | None) -> Failure:
    """The kubelet tells the reason once and then only that it waits: keep what was told first."""
    if not failure.vague or before is None or (before.pod, before.cause) != (failure.pod, failure.cause.value):
        return failure
    return replace(failure, message=before.message, time=before.time)


def _has_capacity(pod: Pod) -> bool:
    runtime = pod.runtime
    return isinstance(runtime, AdminState) and runtime.capacity is not None and runtime.capacity.kv_tokens > 0
