"""The writes that keep a service's revisions: ControllerRevisions, their marks, and what golden prompts gave."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from kvasir_operator.api.conditions import Reason
from kvasir_operator.api.v1alpha1 import ObjectMeta
from kvasir_operator.cluster import MERGE_PATCH, REVISIONS, YAML, Cluster
from kvasir_operator.errors import CONFLICT, PRECONDITION_FAILED, ApiError, PodError
from kvasir_operator.planning.actions import CompareGoldens, DropRevision, KeepRevision, MarkRevision, RevisionAction
from kvasir_operator.planning.failures import TABLE
from kvasir_operator.planning.goldens import Scored, compare
from kvasir_operator.planning.revisions import RevisionFailure
from kvasir_operator.planning.state import Snapshot
from kvasir_operator.resources import names
from kvasir_operator.resources.revision import build_revision
from kvasir_operator.scrape import Scraper
from kvasir_operator.store import Store, owner_uid

GOLDENS_AT_ONCE: Final = 4
"""Golden prompts that one pod works on at the same time: it also has users."""
GOLDENS_SECONDS: Final = 90.0
"""Time for all of them; the service's task waits for it."""


class RevisionKeeper:
    """Writes ControllerRevisions. Holds nothing between calls. Every call may be repeated."""

    def __init__(self, cluster: Cluster, scraper: Scraper, store: Store, clock: Callable[[], datetime]) -> None:
        self._cluster = cluster
        self._scraper = scraper
        self._store = store
        self._clock = clock

    async def do(self, snapshot: Snapshot, action: RevisionAction, token: str | None) -> None:
        """Do one action; raises ApiError or PodError."""
        match action:
            case KeepRevision():
                await self._keep(snapshot, action)
            case MarkRevision():
                await self._mark(snapshot.meta, action.revision, action.uid, action.marks, action.number)
            case DropRevision():
                await self._drop(snapshot.meta, action)
            case CompareGoldens():
                await self._compare(snapshot, action, token or "")

    async def _keep(self, snapshot: Snapshot, action: KeepRevision) -> None:
        meta, template = snapshot.meta, snapshot.template
        assert template is not None, "no revision is kept of a spec that cannot be read"
        manifest = build_revision(meta, template, action.revision, action.number, action.marks)
        try:
            made = await self._cluster.create(REVISIONS, meta.namespace, manifest, YAML)
        except ApiError as error:
            if not error.already_exists:
                raise
            made = await self._cluster.get(REVISIONS, meta.namespace, manifest["metadata"]["name"])
            if owner_uid(made) != meta.uid:
                problem = (
                    f"ControllerRevision {made['metadata']['name']} does not belong to InferenceService {meta.name}"
                )
                raise ApiError(PRECONDITION_FAILED, "NameTaken", problem) from error
        self._store.put(REVISIONS, made)

    async def _mark(
        self, meta: ObjectMeta, revision: str, uid: str, marks: Mapping[str, str | None], number: int | None = None
    ) -> None:
        """A merge patch; the uid makes it a conflict for another object of that name."""
        body: dict[str, Any] = {"metadata": {"uid": uid, "annotations": dict(marks)}}
        if number is not None:
            body["revision"] = number
        name = names.revision_name(meta.name, revision)
        try:
            changed = await self._cluster.patch(REVISIONS, meta.namespace, name, body, MERGE_PATCH)
        except ApiError as error:
            if not error.not_found:
                raise
            self._store.remove(REVISIONS, uid)
        else:
            self._store.put(REVISIONS, changed)

    async def _drop(self, meta: ObjectMeta, action: DropRevision) -> None:
        name = names.revision_name(meta.name, action.revision)
        try:
            await self._cluster.delete(REVISIONS, meta.namespace, name, action.uid)
        except ApiError as error:
            if not error.not_found and not (error.status == CONFLICT and "UID" in str(error)):
                raise
        self._store.remove(REVISIONS, action.uid)

    async def _compare(self, snapshot: Snapshot, action: CompareGoldens, token: str) -> None:
        """Ask both pods, and note that they agree, or that the new revision is given up."""
        try:
            async with asyncio.timeout(GOLDENS_SECONDS):
                before, after = await asyncio.gather(
                    self._ask(snapshot, action.against_ip, action.against_revision, action.prompts, token),
                    self._ask(snapshot, action.ip, action.revision, action.prompts, token),
                )
        except TimeoutError as error:
            raise PodError(0, f"golden prompts were not answered within {GOLDENS_SECONDS:g} s") from error
        found = compare(action.prompts, before, after, action.tolerance)
        if found.agree:
            marks = {names.GOLDEN_ANNOTATION: found.message}
        else:
            failure = RevisionFailure(
                time=self._clock(),
                cause=Reason.GOLDEN_PROMPTS_DIFFER,
                message=f"{found.message}; {action.against} of revision {action.against_revision} was asked too",
                remedy=TABLE[Reason.GOLDEN_PROMPTS_DIFFER].remedy,
                pod=action.pod,
                back_to=action.against_revision,
            )
            marks = {names.FAILURE_ANNOTATION: failure.model_dump_json()}
        await self._mark(snapshot.meta, action.revision, action.uid, marks)

    async def _ask(
        self, snapshot: Snapshot, ip: str, revision: str, prompts: Sequence[str], token: str
    ) -> list[Scored]:
        template = snapshot.template_of(revision)
        model = template.served_name if template is not None else snapshot.meta.name
        limit = asyncio.Semaphore(GOLDENS_AT_ONCE)

        async def ask(prompt: str) -> Scored:
            async with limit:
                return await self._scraper.score(ip, token, model, prompt)

        return list(await asyncio.gather(*map(ask, prompts)))
