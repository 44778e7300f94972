"""Looking at a model before replicas are made: one short pod a source, whose result is kept in the status.

| first replica wanted | the source                                                  | then                           |
|----------------------|-------------------------------------------------------------|--------------------------------|
| no                   | any                                                         | pods that look go              |
| yes                  | was looked at                                               | pods that look go              |
| yes                  | was looked at in vain, or fits on nothing, ten minutes ago  | it is looked at again          |
| yes                  | cannot be looked at: the pod cannot start                   | replicas are made all the same |
| yes                  | is looked at for less than 45 s, by whichever service's pod | replicas wait                  |
| yes                  | is looked at for longer                                     | replicas are made all the same |
| yes                  | is not looked at                                            | a pod is made, replicas wait   |

So an inspection never keeps a replica from being made for long; a result that says that the model does not fit does.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from kvasir_operator.api.status import InspectionStatus
from kvasir_operator.planning.actions import CreateInspection, DeletePod, Why
from kvasir_operator.planning.failures import failure_of
from kvasir_operator.planning.state import Pod, PodPhase, Snapshot
from kvasir_operator.resources import names
from kvasir_runtime.contract.model_report import ModelReport

PATIENCE: Final = timedelta(seconds=45)
"""How long replicas wait for an inspection: an image is pulled meanwhile that they need too."""
VALID_FOR: Final = timedelta(minutes=10)
"""Age at which a refusal, or a failure to look, is looked into again: the source may hold something else by now."""
POLL: Final = timedelta(seconds=1)
"""Time between two looks at another service's inspection."""


@dataclass(frozen=True, slots=True)
class Look:
    """What is to be done, whether replicas wait for it, and when to look again."""

    actions: tuple[CreateInspection | DeletePod, ...] = ()
    waits: bool = False
    due: datetime | None = None


def look_at_model(snapshot: Snapshot, wanted: int, now: datetime) -> Look:
    """Decide by the table above."""
    inspection = snapshot.inspection
    leftover = tuple(DeletePod(pod.name, pod.uid, Why.INSPECTED) for pod in inspection.pods if not pod.deleting)
    present = any(pod.stays and pod.revision == snapshot.revision for pod in snapshot.pods)
    if not inspection.key or present or wanted == 0:
        return Look(leftover)
    if inspected(snapshot, now) is not None:
        # The pod goes when what it said is in the status: until then it is the only one that knows.
        written = snapshot.status.inspection is not None and snapshot.status.inspection.source == inspection.key
        return Look(leftover if written else ())
    running = _running(snapshot)
    if running is not None:
        return _await(running.created_at, now) if failure_of(running) is None else Look()
    if any(refusal.action == CreateInspection.kind for refusal in snapshot.refusals):
        return Look((_creation(snapshot),))
    if inspection.elsewhere is not None and now < inspection.elsewhere + PATIENCE:
        return Look(waits=True, due=now + POLL)
    return Look((*leftover, _creation(snapshot)), waits=True, due=now + PATIENCE)


def inspected(snapshot: Snapshot, now: datetime) -> InspectionStatus | None:
    """What is known of the source, fresh enough to be believed; None where it is to be looked at."""
    inspection = snapshot.inspection
    found = next((result for pod in inspection.pods if (result := result_of(pod, inspection.key, now))), None)
    known = found or inspection.known
    if known is None or known.source != inspection.key:
        return None
    doubtful = known.report is None or snapshot.outlook.misfit is not None
    return known if found is not None or not doubtful or now < known.time + VALID_FOR else None


def result_of(pod: Pod, key: str, now: datetime) -> InspectionStatus | None:
    """What a pod that looked at a source has said; None while it runs, and for one that looked at another source."""
    if pod.phase not in (PodPhase.SUCCEEDED, PodPhase.FAILED) or not pod.name.endswith(key[:8]):
        return None
    ends = [each.last_end for each in pod.containers if each.name == names.INSPECT_CONTAINER]
    end = ends[0] if ends else None
    time = end.finished_at if end is not None and end.finished_at is not None else now
    report = ModelReport.from_json(end.message) if end is not None and pod.phase is PodPhase.SUCCEEDED else None
    if report is not None:
        return InspectionStatus(source=key, time=time, model=report.to_data())
    failure = failure_of(pod)
    message = f"{failure.cause}: {failure.message}" if failure is not None else "the inspection said nothing"
    return InspectionStatus(source=key, time=time, message=message)


def _running(snapshot: Snapshot) -> Pod | None:
    name = names.inspection_pod_name(snapshot.meta.name, snapshot.inspection.key)
    return next((pod for pod in snapshot.inspection.pods if pod.name == name and not _ended(pod)), None)


def _ended(pod: Pod) -> bool:
    return pod.deleting or pod.phase in (PodPhase.SUCCEEDED, PodPhase.FAILED)


def _await(since: datetime, now: datetime) -> Look:
    end = since + PATIENCE
    return Look(waits=True, due=end) if now < end else Look()


def _creation(snapshot: Snapshot) -> CreateInspection:
    return CreateInspection(
        names.inspection_pod_name(snapshot.meta.name, snapshot.inspection.key), snapshot.inspection.key
    )
