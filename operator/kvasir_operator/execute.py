"""Execution: a plan's actions, one write each. Every write may be repeated; what is done already counts as success.

What the API server answers goes into the store at once, so that the next look sees it before the watch tells it.
"""

import asyncio
import itertools
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from kvasir_operator import metrics
from kvasir_operator.api.base import format_time
from kvasir_operator.api.v1alpha1 import ObjectMeta
from kvasir_operator.cluster import (
    BUDGETS,
    MERGE_PATCH,
    NETWORK_POLICIES,
    PODS,
    SECRETS,
    SERVICES,
    SERVICES_OF_OURS,
    STRATEGIC_PATCH,
    Cluster,
    Kind,
)
from kvasir_operator.errors import CONFLICT, PRECONDITION_FAILED, ApiError, PodError
from kvasir_operator.planning.actions import (
    Action,
    ApplyBudget,
    ApplyNetworkPolicy,
    ApplySecret,
    ApplyService,
    CompareGoldens,
    CreateInspection,
    CreatePod,
    DeletePod,
    Drain,
    DropRevision,
    HandOverPrefixes,
    KeepPrefixes,
    KeepRevision,
    MarkRevision,
    SetGates,
    SetReplicas,
    TellAdapters,
    Undrain,
    WarmthAction,
    WarmUp,
)
from kvasir_operator.planning.replicas import least_available
from kvasir_operator.planning.state import Snapshot
from kvasir_operator.prefix_keeper import PrefixKeeper
from kvasir_operator.resources import names
from kvasir_operator.resources.budget import build_budget
from kvasir_operator.resources.inspection import build_inspection_pod
from kvasir_operator.resources.network_policy import build_network_policy
from kvasir_operator.resources.placement import place_on
from kvasir_operator.resources.pod import build_pod
from kvasir_operator.resources.secret import build_admin_secret
from kvasir_operator.resources.service import build_service
from kvasir_operator.revision_keeper import RevisionKeeper
from kvasir_operator.scrape import Scraper
from kvasir_operator.settings import Settings
from kvasir_operator.store import ServiceKey, Store, owner_uid
from kvasir_operator.tokens import Tokens
from kvasir_operator.warmer import Warmer
from kvasir_operator.warmth import Warmth

log = logging.getLogger(__name__)

PARALLEL_WRITES: Final = 8
"""Writes of one service at the same time: a scale-up by a hundred should not keep others waiting."""
EXIT_SECONDS: Final = 30
"""Time that a pod has to end once the operator deletes it. Its own grace period is for whoever deletes it undrained."""
TOKEN_BYTES: Final = 32
"""Random bytes of the operator port's token: 256 bits."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """An action, and what went wrong with it; None when it is done."""

    action: Action
    error: ApiError | PodError | None = None


class Executor:
    """Acts. Holds nothing between calls."""

    def __init__(
        self,
        cluster: Cluster,
        scraper: Scraper,
        store: Store,
        tokens: Tokens,
        settings: Settings,
        clock: Callable[[], datetime],
        warmth: Warmth,
    ) -> None:
        """`warmth` is what observation reads: works that take minutes note in it how they end."""
        self._cluster = cluster
        self._scraper = scraper
        self._keeper = RevisionKeeper(cluster, scraper, store, clock)
        self._prefixes = PrefixKeeper(cluster, scraper, warmth, clock)
        self.warmer = Warmer(cluster, scraper, self._prefixes, warmth, clock)
        self._store = store
        self._tokens = tokens
        self._settings = settings
        self._clock = clock

    async def execute(self, snapshot: Snapshot, actions: Sequence[Action], token: str | None) -> list[Outcome]:
        """Do `actions` in their order, neighbours of the same kind together; a failed one does not stop the others."""
        outcomes: list[Outcome] = []
        limit = asyncio.Semaphore(PARALLEL_WRITES)
        for _, group in itertools.groupby(actions, key=lambda action: action.kind):
            outcomes += await asyncio.gather(*(self._try(snapshot, action, token, limit) for action in group))
        return outcomes

    async def _try(self, snapshot: Snapshot, action: Action, token: str | None, limit: asyncio.Semaphore) -> Outcome:
        async with limit:
            try:
                await self._do(snapshot, action, token)
            except (ApiError, PodError) as error:
                metrics.ACTIONS.labels(action.kind, action.why, "error").inc()
                metrics.ERRORS.labels(action.kind, _cause(error)).inc()
                return Outcome(action, error)
        metrics.ACTIONS.labels(action.kind, action.why, "done").inc()
        log.info("%s %s: %s", action.kind, action.pod or snapshot.meta.name, action.why, extra=reference(snapshot.meta))
        return Outcome(action)

    async def _do(self, snapshot: Snapshot, action: Action, token: str | None) -> None:
        meta = snapshot.meta
        match action:
            case ApplySecret():
                await self._make_secret(meta)
            case ApplyService() | ApplyBudget() | ApplyNetworkPolicy():
                await self._apply_own(snapshot, action)
            case KeepRevision() | MarkRevision() | DropRevision() | CompareGoldens():
                await self._keeper.do(snapshot, action, token)
            case CreatePod():
                await self._create_pod(snapshot, action)
            case CreateInspection():
                await self._create_inspection(snapshot, action)
            case SetGates():
                await self._set_gates(meta, action)
            case SetReplicas():
                await self._set_replicas(meta, action)
            case Drain() | Undrain() | TellAdapters() | WarmUp() | KeepPrefixes() | HandOverPrefixes():
                await self._ask_engines(snapshot, action, token or "")
            case DeletePod():
                await self._delete_pod(meta, action)

    async def _ask_engines(
        self, snapshot: Snapshot, action: Drain | Undrain | TellAdapters | WarmthAction, token: str
    ) -> None:
        """Calls to operator ports; what takes long is only begun."""
        match action:
            case Drain():
                await self._scraper.drain(action.ip, token, action.timeout_s)
            case Undrain():
                await self._scraper.undrain(action.ip, token)
            case TellAdapters():
                await self._scraper.tell_adapters(action.ip, token, action.wanted)
            case WarmUp():
                self.warmer.warm_up(snapshot, action, token)
            case HandOverPrefixes():
                self.warmer.hand_over(snapshot, action, token)
            case KeepPrefixes():
                traffic = snapshot.spec.warmup.from_traffic if snapshot.spec and snapshot.spec.warmup else None
                assert traffic is not None, "nothing is collected that nobody asks for"
                await self._prefixes.collect(snapshot.meta, traffic, action, token)

    async def _make_secret(self, meta: ObjectMeta) -> None:
        """Draw a token and keep it. A Secret that is there and cannot be used is shown, never overwritten."""
        manifest = build_admin_secret(meta, secrets.token_urlsafe(TOKEN_BYTES))
        try:
            made = await self._cluster.create(SECRETS, meta.namespace, manifest)
        except ApiError as error:
            if not error.already_exists:
                raise
            made = await self._cluster.get(SECRETS, meta.namespace, manifest["metadata"]["name"])
            refuse_foreign(made, meta)
        self._tokens.keep(meta, made)
        if self._tokens.known(meta).value is None:
            name, key = manifest["metadata"]["name"], names.ADMIN_TOKEN_KEY
            raise ApiError(
                PRECONDITION_FAILED,
                "NoToken",
                f"Secret {name} has no usable key {key!r}: delete it to have it made anew",
            )

    async def _apply_own(self, snapshot: Snapshot, action: ApplyService | ApplyBudget | ApplyNetworkPolicy) -> None:
        if isinstance(action, ApplyService):
            await self._apply(SERVICES, snapshot.meta, build_service(snapshot.meta))
            return
        if isinstance(action, ApplyNetworkPolicy):
            policy = build_network_policy(snapshot.meta, self._settings.namespace)
            await self._apply(NETWORK_POLICIES, snapshot.meta, policy)
            return
        assert snapshot.spec is not None, "no budget is planned for a spec that cannot be read"
        manifest = build_budget(snapshot.meta, least_available(snapshot.spec))
        await self._apply(BUDGETS, snapshot.meta, manifest | {"apiVersion": self._cluster.version_of(BUDGETS)})

    async def _apply(self, kind: Kind, meta: ObjectMeta, manifest: dict[str, Any]) -> None:
        """Create the object, or mend the one that is there if it is ours. Somebody else's is never touched."""
        try:
            made = await self._cluster.create(kind, meta.namespace, manifest)
        except ApiError as error:
            if not error.already_exists:
                raise
            refuse_foreign(await self._cluster.get(kind, meta.namespace, manifest["metadata"]["name"]), meta)
            made = await self._cluster.apply(kind, meta.namespace, manifest)
        self._store.put(kind, made)

    async def _create_pod(self, snapshot: Snapshot, action: CreatePod) -> None:
        meta, template = snapshot.meta, snapshot.template_of(action.revision)
        assert template is not None, "no pods are planned of a revision that cannot be read"
        manifest = build_pod(meta, template, action.pod, self._settings, action.revision)
        if action.attempt:
            manifest["metadata"].setdefault("annotations", {})[names.ATTEMPT_ANNOTATION] = str(action.attempt)
        if action.products:
            place_on(manifest, action.products)
        await self._create(meta, manifest)

    async def _create_inspection(self, snapshot: Snapshot, action: CreateInspection) -> None:
        assert snapshot.template is not None, "no model is looked at for a spec that cannot be read"
        manifest = build_inspection_pod(snapshot.meta, snapshot.template, action.source, self._settings)
        await self._create(snapshot.meta, manifest)

    async def _create(self, meta: ObjectMeta, manifest: dict[str, Any]) -> None:
        """Make a pod, or take the one that is there if it is ours: an earlier attempt made it."""
        try:
            made = await self._cluster.create(PODS, meta.namespace, manifest)
        except ApiError as error:
            if not error.already_exists:
                raise
            made = await self._cluster.get(PODS, meta.namespace, manifest["metadata"]["name"])
            refuse_foreign(made, meta)
        self._store.put(PODS, made)

    async def _set_gates(self, meta: ObjectMeta, action: SetGates) -> None:
        """Merge the conditions into the pod's, by type; the uid makes it a conflict for a pod of the same name."""
        now = format_time(self._clock())
        conditions = [
            {
                "type": kind,
                "status": "True" if gate.open else "False",
                "reason": gate.reason,
                "message": gate.message,
                "lastTransitionTime": now,
            }
            for kind, gate in action.gates.items()
        ]
        body = {"metadata": {"uid": action.uid}, "status": {"conditions": conditions}}
        try:
            changed = await self._cluster.patch(PODS, meta.namespace, action.pod, body, STRATEGIC_PATCH, "status")
        except ApiError as error:
            if not error.not_found:
                raise
            self._store.remove(PODS, action.uid)
        else:
            self._store.put(PODS, changed)

    async def _set_replicas(self, meta: ObjectMeta, action: SetReplicas) -> None:
        """Through /scale, as an HPA does it; its answer is no InferenceService, so the object is read once more."""
        body = {"spec": {"replicas": action.replicas}}
        await self._cluster.patch(SERVICES_OF_OURS, meta.namespace, meta.name, body, MERGE_PATCH, "scale")
        self._store.put(SERVICES_OF_OURS, await self._cluster.get(SERVICES_OF_OURS, meta.namespace, meta.name))

    async def _delete_pod(self, meta: ObjectMeta, action: DeletePod) -> None:
        try:
            answer = await self._cluster.delete(PODS, meta.namespace, action.pod, action.uid, EXIT_SECONDS)
        except ApiError as error:
            if not error.not_found and not (error.status == CONFLICT and "UID" in str(error)):
                raise
            self._store.remove(PODS, action.uid)
            return
        if answer.get("kind") == "Pod" and "deletionTimestamp" in answer["metadata"]:
            self._store.put(PODS, answer)
        else:
            self._store.remove(PODS, action.uid)


def refuse_foreign(found: Mapping[str, Any], meta: ObjectMeta) -> None:
    """Raise ApiError for an object that has our name and another owner."""
    if owner_uid(found) != meta.uid:
        kind, name = found.get("kind", "object"), found["metadata"]["name"]
        message = f"{kind} {name} exists and does not belong to InferenceService {meta.name}: rename one of them"
        raise ApiError(PRECONDITION_FAILED, "NameTaken", message)


def reference(meta: ObjectMeta) -> dict[str, Any]:
    """The service in a log record, as kopf's formatters show it."""
    return {"k8s_ref": {"kind": "InferenceService", "namespace": meta.namespace, "name": meta.name, "uid": meta.uid}}


def key_of_meta(meta: ObjectMeta) -> ServiceKey:
    return ServiceKey(meta.namespace, meta.name)


def _cause(error: ApiError | PodError) -> str:
    if isinstance(error, ApiError):
        return error.reason or str(error.status)
    return "PodRefused" if error.status else "PodSilent"
