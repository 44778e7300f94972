"""Observation: one service and all that belongs to it, from the cache and from its engines, as a `Snapshot`."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pydantic import ValidationError

from kvasir_operator import metrics
from kvasir_operator.api.field_errors import FieldError, from_validation_error
from kvasir_operator.api.v1alpha1 import InferenceService, InferenceServiceStatus, ObjectMeta
from kvasir_operator.api.validation import check
from kvasir_operator.cluster import (
    BUDGETS,
    EVENTS,
    NETWORK_POLICIES,
    PODS,
    REVISIONS,
    SERVICES,
    SERVICES_OF_OURS,
    Cluster,
)
from kvasir_operator.cordons import Cordons
from kvasir_operator.devices import Devices
from kvasir_operator.errors import ApiError
from kvasir_operator.fleet.adapters import AdapterWish, wishes_of
from kvasir_operator.grouping import Applicant
from kvasir_operator.outlooks import Outlooks, Wish, applicant_of
from kvasir_operator.placement.inventory import read_demand
from kvasir_operator.placement.sources import is_inspectable, source_key
from kvasir_operator.planning.drift import covers
from kvasir_operator.planning.failures import failure_of
from kvasir_operator.planning.reading import read_pod
from kvasir_operator.planning.replicas import least_available
from kvasir_operator.planning.revisions import check_pin, read_revision
from kvasir_operator.planning.state import NOT_ASKED, ObjectState, Pod, PodWarning, Refusal, Snapshot, Stage, Unknown
from kvasir_operator.resources import names
from kvasir_operator.resources.budget import build_budget
from kvasir_operator.resources.network_policy import build_network_policy
from kvasir_operator.resources.pod import build_pod
from kvasir_operator.resources.service import build_service
from kvasir_operator.resources.sources import check_source
from kvasir_operator.resources.template_hash import RevisionTemplate
from kvasir_operator.scaling.ownership import Claims
from kvasir_operator.scrape import Scraper
from kvasir_operator.settings import Settings
from kvasir_operator.store import CLAIMS, ServiceKey, Store, owner_uid
from kvasir_operator.tokens import Tokens
from kvasir_operator.warmth import Warmth
from kvasir_runtime.contract.admin_api import AdapterReports, AdminState

Manifest = Mapping[str, Any]

_EPOCH: Final = datetime.fromtimestamp(0, UTC)
STUCK_AFTER: Final = timedelta(seconds=3)
"""A pod that has a node and no container for this long has probably had a Warning: its Events are read."""
WARNINGS_AGE: Final = timedelta(seconds=10)
"""How long Events that were read count as news, for a pod that stays stuck."""
MOVING_AGE: Final = timedelta(seconds=0.3)
"""How old an engine's answer may be while its pod starts or drains: several events of one change share a reading."""
SILENCES: Final = (3, 30, 300)
"""Unanswered readings in a row after which the API server is asked whether the pod still exists."""


@dataclass(slots=True)
class _Sample:
    """What one pod last said, and what its Events last said."""

    state: AdminState | Unknown = NOT_ASKED
    adapters: AdapterReports | Unknown = NOT_ASKED
    asked_at: datetime | None = None
    changes: int = 0
    silences: int = 0
    warnings: tuple[PodWarning, ...] = ()
    warned_at: datetime | None = None

    @property
    def doubts_token(self) -> bool:
        """Whether the engine refused the token, or the kubelet cannot mount something."""
        refused = isinstance(self.state, Unknown) and self.state.status in (401, 403)
        return refused or any(warning.reason == "FailedMount" for warning in self.warnings)


@dataclass(frozen=True, slots=True)
class Desired:
    """What an InferenceService asks for, read from one generation of it."""

    service: InferenceService | None
    template: RevisionTemplate | None
    revision: str
    errors: tuple[FieldError, ...]
    source_errors: tuple[FieldError, ...]
    wish: Wish | None = None
    adapters: tuple[AdapterWish, ...] = ()


class Observer:
    """Makes snapshots. Keeps the engines' last answers by pod uid, and forgets them with the pod."""

    def __init__(
        self,
        store: Store,
        tokens: Tokens,
        scraper: Scraper,
        cluster: Cluster,
        settings: Settings,
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._tokens = tokens
        self._scraper = scraper
        self._cluster = cluster
        self._settings = settings
        self._clock = clock
        self._samples: dict[ServiceKey, dict[str, _Sample]] = {}
        self._desired: dict[ServiceKey, tuple[tuple[object, ...], Desired]] = {}
        self._cordons = Cordons()
        self.warmth = Warmth()
        self.devices = Devices(store, clock)
        self.devices.in_groups = self._in_groups
        self._outlooks = Outlooks(store, self.devices, settings, clock)

    def _in_groups(self) -> Iterable[Applicant]:
        """The services that start with others; those whose spec is not valid do not count."""
        for manifest in self._store.all(SERVICES_OF_OURS):
            metadata = manifest["metadata"]
            if (manifest.get("spec") or {}).get("group") and "deletionTimestamp" not in metadata:
                wish = self._read(ServiceKey(metadata["namespace"], metadata["name"]), manifest).wish
                if wish is not None:
                    yield applicant_of(wish)

    def notice_cordon(self, change: str | None, node: Manifest) -> set[ServiceKey]:
        """Take in a watch event of a node; returns the services with pods on it if that is to be emptied or not."""
        name = self._cordons.notice(change, node)
        return self._store.services_on(name) if name is not None else set()

    async def look(self, key: ServiceKey, refusals: tuple[Refusal, ...] = ()) -> Snapshot | None:
        """Ask the engines whose answers are too old, then make a snapshot; None when the service is gone."""
        await self.refresh(key)
        return self.recall(key, refusals)

    async def refresh(self, key: ServiceKey) -> tuple[object, ...]:
        """Ask the engines whose answers are too old. Equal results mean that nothing changed between two calls.

        Raises ApiError when the API server does not give the Secret with the engines' token.
        """
        manifest = self._store.service(key)
        if manifest is None:
            return ()
        meta = ObjectMeta.model_validate(manifest["metadata"])
        own = [pod for pod in self._store.of_service(key, PODS) if owner_uid(pod) == meta.uid and is_replica(pod)]
        known = self._samples.get(key, {})
        samples = {pod["metadata"]["uid"]: known.get(pod["metadata"]["uid"]) or _Sample() for pod in own}
        self._samples[key] = samples
        self.warmth.keep_only(key, samples)
        doubted = any(sample.doubts_token for sample in samples.values())
        token = await self._tokens.look(meta, doubted=doubted)
        pods = [read_pod(pod, samples[pod["metadata"]["uid"]].state) for pod in own]
        await asyncio.gather(*(self._ask(key, pod, samples[pod.uid], token.value) for pod in pods))
        placed = self._outlooks.basis(self._read(key, manifest).wish)
        heard = ((uid, sample.changes) for uid, sample in samples.items())
        left = self._cordons.cordoned.intersection(pod.node for pod in pods)
        return self._store.changes(key), token.state, placed, left, *heard

    def recall(self, key: ServiceKey, refusals: tuple[Refusal, ...] = ()) -> Snapshot | None:
        """Make a snapshot of what is known already."""
        manifest = self._store.service(key)
        if manifest is None:
            return None
        meta = ObjectMeta.model_validate(manifest["metadata"])
        desired = self._read(key, manifest)
        pods = self._store.of_service(key, PODS)
        mine = [pod for pod in pods if owner_uid(pod) == meta.uid]
        own = tuple(self._pods(key, filter(is_replica, mine)))
        looking = tuple(self._pods(key, (pod for pod in mine if not is_replica(pod))))
        status = _read_status(manifest)
        inspection = self._outlooks.inspection(desired.wish, status, looking, own)
        outlook, standing = self._outlooks.outlook(desired.wish, inspection)
        token = self._tokens.known(meta)
        history = tuple(
            read_revision(each) for each in self._store.of_service(key, REVISIONS) if owner_uid(each) == meta.uid
        )
        serving = {pod.revision for pod in own if pod.stage is Stage.SERVING}
        return Snapshot(
            meta=meta,
            spec=desired.service.spec if desired.service is not None else None,
            status=status,
            template=desired.template,
            revision=desired.revision,
            errors=(*desired.errors, *check_pin(meta, desired.revision, history, serving)),
            source_errors=desired.source_errors,
            pods=own,
            taken_names=frozenset(pod["metadata"]["name"] for pod in pods if owner_uid(pod) != meta.uid),
            service=_compare(self._store.of_service(key, SERVICES), build_service(meta)),
            secret=token.state,
            budget=self._budget(key, meta, desired),
            network_policy=self._network_policy(key, meta),
            history=history,
            cordoned=self._cordons.cordoned,
            refusals=(*refusals, token.refusal) if token.refusal is not None else refusals,
            standing=standing,
            inspection=inspection,
            outlook=outlook,
            claims=manifest.get(CLAIMS, Claims()),
            collected=self.warmth.collected(key),
            adapter_wishes=desired.adapters,
        )

    def _budget(self, key: ServiceKey, meta: ObjectMeta, desired: Desired) -> ObjectState:
        """Whether the PodDisruptionBudget says what the spec asks for."""
        if desired.service is None:
            return ObjectState.UNKNOWN
        wanted = build_budget(meta, least_available(desired.service.spec))
        return _compare(self._store.of_service(key, BUDGETS), wanted)

    def _network_policy(self, key: ServiceKey, meta: ObjectMeta) -> ObjectState:
        """Whether the operator port is closed to others, where the settings ask for that."""
        if not self._settings.network_policies:
            return ObjectState.CURRENT
        wanted = build_network_policy(meta, self._settings.namespace)
        return _compare(self._store.of_service(key, NETWORK_POLICIES), wanted)

    def token(self, key: ServiceKey) -> str | None:
        """The bearer token of the service's engines; None while there is none."""
        manifest = self._store.service(key)
        return self._tokens.known(ObjectMeta.model_validate(manifest["metadata"])).value if manifest else None

    def forget_answer(self, key: ServiceKey, uid: str) -> None:
        """Count the pod's last answer as old, because it was just told something."""
        sample = self._samples.get(key, {}).get(uid)
        if sample is not None:
            sample.asked_at = None

    def _pods(self, key: ServiceKey, manifests: Iterable[Manifest]) -> Iterable[Pod]:
        samples = self._samples.get(key, {})
        for manifest in manifests:
            sample = samples.get(manifest["metadata"]["uid"], _Sample())
            silent = self.devices.silent_since(manifest["spec"].get("nodeName", ""))
            uid = manifest["metadata"]["uid"]
            warming, handover = self.warmth.warming(key, uid), self.warmth.handover(key, uid)
            yield read_pod(manifest, sample.state, sample.warnings, silent, sample.adapters, warming, handover)

    def _read(self, key: ServiceKey, manifest: Manifest) -> Desired:
        """The typed spec; read once for each generation and each restart that is asked for."""
        metadata = manifest["metadata"]
        restart = (metadata.get("annotations") or {}).get(names.RESTART_ANNOTATION)
        identity = (metadata["uid"], metadata.get("generation", 0), restart)
        kept = self._desired.get(key)
        if kept is None or kept[0] != identity:
            kept = (identity, read_desired(manifest, self._settings))
            self._desired[key] = kept
        return kept[1]

    def forget(self, key: ServiceKey) -> None:
        """Keep nothing of a service that is gone."""
        self._samples.pop(key, None)
        self.warmth.forget(key)
        self._outlooks.forget(key)
        kept = self._desired.pop(key, None)
        if kept is not None:
            self._tokens.forget(str(kept[0][0]))

    async def _ask(self, key: ServiceKey, pod: Pod, sample: _Sample, token: str | None) -> None:
        """Bring one pod's sample up to date, if it is worth it."""
        before = sample.state, sample.adapters, sample.warnings
        now = self._clock()
        if not pod.has_process or pod.stage in (Stage.FINISHED, Stage.LEAVING) or not pod.ip:
            sample.state = sample.adapters = NOT_ASKED
        elif token is None:
            sample.state = Unknown("the token of the operator port is not known")
        elif sample.asked_at is None or now - sample.asked_at >= self._age_limit(pod):
            await self._scrape(key, pod, sample, token)
        if not is_stuck(pod, now):
            sample.warnings, sample.warned_at = (), None
        elif sample.warned_at is None or now - sample.warned_at >= WARNINGS_AGE:
            sample.warnings, sample.warned_at = await self._warnings(key, pod), now
        sample.changes += (sample.state, sample.adapters, sample.warnings) != before

    async def _scrape(self, key: ServiceKey, pod: Pod, sample: _Sample, token: str) -> None:
        sample.state = await self._scraper.state(pod.ip, token)
        sample.adapters = await self._adapters(pod.ip, token, sample.state)
        sample.asked_at = self._clock()
        sample.silences = sample.silences + 1 if isinstance(sample.state, Unknown) else 0
        if sample.silences in SILENCES:
            await self._verify(pod, key)

    async def _adapters(self, ip: str, token: str, state: AdminState | Unknown) -> AdapterReports | Unknown:
        """How an engine's adapters fare, where it serves some; what another process says is not known of this one."""
        if isinstance(state, Unknown) or state.capacity is None or not state.capacity.max_adapters:
            return NOT_ASKED
        found = await self._scraper.adapters(ip, token)
        other = isinstance(found, AdapterReports) and found.boot_id != state.boot_id
        return Unknown("another process answered") if other else found

    def _age_limit(self, pod: Pod) -> timedelta:
        if pod.stage is Stage.SERVING:
            return timedelta(seconds=self._settings.scrape_seconds * 0.9)
        return MOVING_AGE

    async def _verify(self, pod: Pod, key: ServiceKey) -> None:
        """Ask the API server for a pod that is silent: its end may have been missed."""
        try:
            self._store.put(PODS, await self._cluster.get(PODS, key.namespace, pod.name))
        except ApiError as error:
            if error.not_found:
                self._store.remove(PODS, pod.uid)
            else:
                metrics.ERRORS.labels("verify", error.reason).inc()

    async def _warnings(self, key: ServiceKey, pod: Pod) -> tuple[PodWarning, ...]:
        """The Warnings about a pod, oldest first; none when they cannot be had, which is not worth a failure."""
        selector = f"involvedObject.uid={pod.uid},type=Warning"
        events: list[dict[str, Any]] = []
        try:
            async for page, _ in self._cluster.pages(EVENTS, key.namespace, query={"fieldSelector": selector}):
                events += page
        except ApiError as error:
            metrics.ERRORS.labels("warnings", error.reason).inc()
        events.sort(key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")
        return tuple(PodWarning(event.get("reason", ""), event.get("message", "")) for event in events)


def is_stuck(pod: Pod, now: datetime) -> bool:
    """Whether a pod's Events are worth reading: it should have a process, has none, and nothing else says why."""
    if pod.ready or pod.deleting or not pod.node or now - pod.created_at < STUCK_AFTER:
        return False
    restarted = any(each.restarts for each in pod.containers)
    return restarted or (failure_of(pod) is None and not any(each.running for each in pod.containers))


def read_desired(manifest: Manifest, settings: Settings) -> Desired:
    """Read and check an InferenceService. What is wrong with it is returned, never raised."""
    try:
        service = InferenceService.from_manifest(manifest)
    except ValidationError as error:
        return Desired(None, None, "", tuple(from_validation_error(error)), ())
    errors, source_errors = tuple(check(service)), tuple(check_source(service.spec.model.source, settings))
    if errors or source_errors:
        return Desired(service, None, "", errors, source_errors)
    template = RevisionTemplate.of(service, settings)
    adapters = wishes_of(service.spec.adapters, settings)
    return Desired(service, template, template.digest(), (), (), _wish(service, template, settings), adapters)


def _wish(service: InferenceService, template: RevisionTemplate, settings: Settings) -> Wish:
    """What placement needs to know; the demand on nodes is read from a pod as it would be made."""
    meta, source, engine = service.metadata, service.spec.model.source, service.spec.engine
    return Wish(
        key=ServiceKey(meta.namespace, meta.name),
        spec=service.spec,
        since=meta.creation_timestamp or _EPOCH,
        revision=f"{meta.uid}/{template.digest()}",
        source=source_key(source, meta.namespace, engine.image, engine.env) if is_inspectable(source) else "",
        demand=read_demand(build_pod(meta, template, meta.name, settings)["spec"]),
    )


def is_replica(pod: Manifest) -> bool:
    """Whether a pod of the service runs the engine, or is to; others look at its model."""
    return bool((pod["metadata"].get("labels") or {}).get(names.COMPONENT_LABEL) != names.INSPECTION_COMPONENT)


def _read_status(manifest: Manifest) -> InferenceServiceStatus:
    """The status as last written; what cannot be read counts as absent, since it can be computed again."""
    try:
        return InferenceServiceStatus.model_validate(manifest.get("status") or {})
    except ValidationError:
        return InferenceServiceStatus()


def _compare(found: Iterable[Manifest], wanted: Manifest) -> ObjectState:
    content = {key: value for key, value in wanted.items() if key not in ("apiVersion", "kind")}  # lists lack them
    for manifest in found:
        if manifest["metadata"]["name"] == wanted["metadata"]["name"]:
            return ObjectState.CURRENT if covers(manifest, content) else ObjectState.OUTDATED
    return ObjectState.MISSING
