"""What is known of models before they run, and what placement says to each service. Keeps what others can use too.

A model is looked at once for all services that read it with the same rights; what was found is in their statuses, so
that a new operator has it as well.
"""

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Final, NamedTuple

from kvasir_operator.api.status import InspectionStatus
from kvasir_operator.api.v1alpha1 import InferenceServiceSpec, InferenceServiceStatus
from kvasir_operator.devices import Devices, Position
from kvasir_operator.grouping import Applicant
from kvasir_operator.placement.assessment import UNKNOWN, Assessment, assess
from kvasir_operator.placement.inventory import DeviceDemand, DeviceNode
from kvasir_operator.placement.outlook import Outlook
from kvasir_operator.placement.queue import Standing
from kvasir_operator.placement.rooms import rooms_of
from kvasir_operator.planning.inspecting import PATIENCE, VALID_FOR, result_of
from kvasir_operator.planning.replicas import wanted_replicas
from kvasir_operator.planning.state import Inspection, Pod
from kvasir_operator.settings import Settings
from kvasir_operator.store import ServiceKey, Store
from kvasir_runtime.contract.memory import ModelShape

_NOWHERE: Final = Position()


class Wish(NamedTuple):
    """What a service asks for, as far as placement is concerned. `source` is the key of its model, empty: not to read.

    `revision` tells one wish from another: the plan is made once for each.
    """

    key: ServiceKey
    spec: InferenceServiceSpec
    since: datetime
    revision: str
    source: str
    demand: DeviceDemand | None


def applicant_of(wish: Wish) -> Applicant:
    """The service as others see it that want devices."""
    group = wish.spec.group
    return Applicant(
        key=wish.key,
        demand=wish.demand,
        priority=wish.spec.priority,
        since=wish.since,
        wanted=wanted_replicas(wish.spec),
        group=group.name if group is not None else "",
        group_size=group.services if group is not None else 0,
    )


class Outlooks:
    """Answers for one service after the other. What it remembers costs a look when it is lost."""

    def __init__(self, store: Store, devices: Devices, settings: Settings, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._devices = devices
        self._settings = settings
        self._clock = clock
        self._found: dict[str, InspectionStatus] = {}
        self._looking: dict[str, tuple[ServiceKey, datetime]] = {}
        self._assessed: dict[ServiceKey, tuple[object, Assessment]] = {}

    def forget(self, key: ServiceKey) -> None:
        """Keep nothing of a service that is gone, except what others may use."""
        self._assessed.pop(key, None)

    def inspection(
        self, wish: Wish | None, status: InferenceServiceStatus, looking: tuple[Pod, ...], replicas: Iterable[Pod]
    ) -> Inspection:
        """How far the look at the model is. `looking` are the service's own pods that look."""
        if wish is None or not wish.source or not self._settings.inspect_models:
            return Inspection(pods=looking)
        known = self._known(wish.source, status, looking)
        needed = known is None and wanted_replicas(wish.spec) > 0 and not any(pod.stays for pod in replicas)
        return Inspection(wish.source, known, looking, self._elsewhere(wish.source, wish.key) if needed else None)

    def _known(self, source: str, status: InferenceServiceStatus, looking: tuple[Pod, ...]) -> InspectionStatus | None:
        now = self._clock()
        own = status.inspection if status.inspection is not None and status.inspection.source == source else None
        said = next((result for pod in looking if (result := result_of(pod, source, now)) is not None), None)
        shared = self._found.get(source)
        found = said or own or (shared if shared is not None and now < shared.time + VALID_FOR else None)
        if found is not None and (shared is None or shared.time < found.time):
            self._found[source] = found
            self._looking.pop(source, None)
        return found

    def _elsewhere(self, source: str, key: ServiceKey) -> datetime | None:
        """Since when another service looks at the source; None where it is this one's turn."""
        now = self._clock()
        looker, since = self._looking.get(source, (key, now))
        if looker == key or now >= since + PATIENCE or self._store.service(looker) is None:
            self._looking[source] = key, since if looker == key else now
            return None
        return since

    def position(self, wish: Wish | None) -> Position:
        """What concerns the service among those that want devices."""
        if wish is None or (wish.demand is None and wish.spec.group is None):
            return _NOWHERE
        return self._devices.position(applicant_of(wish))

    def basis(self, wish: Wish | None) -> tuple[object, ...]:
        """Equal while placement has nothing new to say to the service."""
        if wish is None or (wish.demand is None and wish.spec.group is None):
            return ()
        return self.position(wish), self._devices.changes

    def outlook(self, wish: Wish | None, inspection: Inspection) -> tuple[Outlook, Standing | None]:
        """Where the model fits and where there is room; and the service's place in the queue, where it waits."""
        if wish is None:
            return Outlook(), None
        report = inspection.known.report if inspection.known is not None else None
        shape = report.shape if report is not None and not report.doubt else None
        position = self.position(wish)
        if wish.demand is None:
            return Outlook(self._assess(wish, shape, []), turn=position.turn), None
        inventory = self._devices.inventory()
        assessment = self._assess(wish, shape, inventory.suitable(wish.demand))
        rooms = rooms_of(assessment.products, wish.demand, inventory)
        return Outlook(assessment, rooms, position.yields, position.kept_for, position.turn), position.standing

    def _assess(self, wish: Wish, shape: ModelShape | None, nodes: list[DeviceNode]) -> Assessment:
        """The plan; made anew only when model, spec or kinds of nodes have changed."""
        if shape is None:
            return UNKNOWN
        resource = wish.demand.resource if wish.demand is not None else ""
        basis = wish.revision, shape, frozenset((node.product, node.memory(resource)) for node in nodes)
        kept = self._assessed.get(wish.key)
        if kept is None or kept[0] != basis:
            kept = basis, assess(wish.spec, shape, nodes, self._settings)
            self._assessed[wish.key] = kept
        return kept[1]
