"""Adapters in the plan: what each pod is to have, what it is told now, and whether its first set has come."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from kvasir_operator.fleet.adapter_placement import AdapterDemand, Room, place_adapters
from kvasir_operator.fleet.adapters import Told, is_settled, next_look, problem_with, retry_at, wanted_set
from kvasir_operator.planning.actions import TellAdapters, Why
from kvasir_operator.planning.gates import Step, is_open_for, waiting_since
from kvasir_operator.planning.state import Pod, Snapshot
from kvasir_operator.resources import names
from kvasir_runtime.contract.admin_api import AdapterReports, AdapterSet, AdminState


@dataclass(frozen=True, slots=True)
class AdapterWork:
    """What engines are told now, and when to look again at the latest."""

    actions: tuple[TellAdapters, ...] = ()
    due: datetime | None = None


def wanted_sets(snapshot: Snapshot, now: datetime) -> Mapping[str, AdapterSet]:
    """The set that each pod is to have, by uid, of those that stay and whose engine serves adapters."""
    pods = [pod for pod in snapshot.pods if pod.stays and pod.adapter_places > 0]
    wishes = [wish for wish in snapshot.adapter_wishes if not wish.refused]
    demand = _demand(pods)
    adapters = [AdapterDemand(wish.name, demand.get(wish.name, 0.0), wish.wanted.pinned) for wish in wishes]
    placed = place_adapters(adapters, [_room(pod) for pod in pods], routed=snapshot.routed)
    annotation = snapshot.meta.annotations.get(names.ADAPTERS_VERSION_ANNOTATION, "")
    sets = {
        chosen: wanted_set([wish for wish in wishes if wish.name in chosen], annotation, now)
        for chosen in set(placed.values())
    }
    return {pod.uid: sets[placed[pod.uid]] for pod in pods}


def _demand(pods: list[Pod]) -> Mapping[str, float]:
    """Requests of late for each adapter, over all replicas."""
    found: dict[str, float] = {}
    for pod in pods:
        if isinstance(pod.runtime, AdminState):
            for row in pod.runtime.adapters:
                found[row.name] = found.get(row.name, 0.0) + row.demand
    return found


def _room(pod: Pod) -> Room:
    reports = pod.adapters.adapters if isinstance(pod.adapters, AdapterReports) else []
    return Room(pod.uid, pod.adapter_places, frozenset(report.name for report in reports if report.digest))


def tell_adapters(snapshot: Snapshot, now: datetime) -> AdapterWork:
    """Follow the table of `fleet.adapters` for every pod."""
    wanted = wanted_sets(snapshot, now)
    dues = [next_look(snapshot.adapter_wishes, now)] if wanted else []
    actions: list[TellAdapters] = []
    for pod in snapshot.pods:
        reports = pod.adapters
        if pod.uid not in wanted or not pod.serves_now or not isinstance(reports, AdapterReports):
            continue
        if reports.tag != wanted[pod.uid].tag:
            actions.append(TellAdapters(pod.name, pod.uid, pod.ip, wanted[pod.uid], Why.OUTDATED))
            continue
        retries = [retry_at(report, now) for report in reports.adapters if report.state == "failed"]
        if any(retry <= now for retry in retries):
            actions.append(TellAdapters(pod.name, pod.uid, pod.ip, wanted[pod.uid], Why.RETRY))
        dues += [retry for retry in retries if retry > now]
        if any(report.state == "loading" for report in reports.adapters):
            dues.append(now + timedelta(seconds=1))
    return AdapterWork(tuple(actions), min((due for due in dues if due is not None), default=None))


def told(snapshot: Snapshot, now: datetime) -> Iterator[Told]:
    """Every replica that is to have adapters, with what it says of them."""
    wanted = wanted_sets(snapshot, now)
    for pod in snapshot.pods:
        if pod.uid in wanted:
            reports = pod.adapters if isinstance(pod.adapters, AdapterReports) else None
            yield Told(pod.name, wanted[pod.uid], reports)


# | the adapters of the pod                   | gate   | reason          |
# |-------------------------------------------|--------|-----------------|
# | it is open for this process already       | open   | as it is        |
# | none are to be served                     | open   | NothingToLoad   |
# | the engine was not told, or says nothing  | closed | AdaptersLoading |
# | each is there, or has failed              | open   | AdaptersLoaded  |
# | one has not come for two minutes          | open   | AdaptersLate    |
# | one is on its way                         | closed | AdaptersLoading |
def adapters_step(pod: Pod, wanted: AdapterSet | None, boot_id: str, patience_s: float, now: datetime) -> Step:
    """Whether the gate `kvasir.dev/adapters` may open: the first line of the table above that holds."""
    if is_open_for(pod, names.ADAPTERS_GATE, boot_id):
        return Step(done=True)
    if wanted is None or not wanted.adapters:
        return Step(done=True, reason="NothingToLoad")
    since = waiting_since(pod, names.ADAPTERS_GATE, boot_id)
    late = since is not None and now >= since + timedelta(seconds=patience_s)
    reports = pod.adapters if isinstance(pod.adapters, AdapterReports) and pod.adapters.tag == wanted.tag else None
    if reports is not None and all(is_settled(report) for report in reports.adapters):
        return Step(done=True, reason="AdaptersLoaded", note=_counts(reports, wanted))
    due = since + timedelta(seconds=patience_s) if since is not None else None
    if late:
        return Step(done=True, reason="AdaptersLate", note=_counts(reports, wanted))
    return Step(done=False, reason="AdaptersLoading", due=due)


def _counts(reports: AdapterReports | None, wanted: AdapterSet) -> str:
    """`95 of 100 adapters are loaded`."""
    by_name = {each.name: each for each in wanted.adapters}
    found = reports.adapters if reports is not None else []
    loaded = sum(report.name in by_name and not problem_with(report, by_name[report.name]) for report in found)
    return f"{loaded} of {len(wanted.adapters)} adapters are loaded"
