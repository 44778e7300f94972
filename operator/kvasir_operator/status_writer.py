"""Writing status: only what changed, through the status subresource, details not more often than they are read.

A merge patch, and not server-side apply: the operator is the only writer of `status`, so ownership of fields says
nothing that is not known; the patch holds only what changed and needs no version, so it never conflicts with the user
who edits the spec at the same time.
"""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from kvasir_operator.api.v1alpha1 import InferenceServiceStatus, ObjectMeta
from kvasir_operator.cluster import MERGE_PATCH, SERVICES_OF_OURS, Cluster
from kvasir_operator.errors import ApiError
from kvasir_operator.planning.status import Change, change_between
from kvasir_operator.store import ServiceKey, Store

DETAIL_INTERVAL: Final = timedelta(seconds=10)
"""Time between two writes of mere details of one service."""


class StatusWriter:
    """Writes the status of one service."""

    def __init__(self, cluster: Cluster, store: Store, key: ServiceKey, clock: Callable[[], datetime]) -> None:
        self._cluster = cluster
        self._store = store
        self._key = key
        self._clock = clock
        self._written_at: datetime | None = None

    async def write(
        self, meta: ObjectMeta, before: InferenceServiceStatus, after: InferenceServiceStatus
    ) -> datetime | None:
        """Write `after` if it says something new; returns when to write details that have to wait."""
        change = change_between(before, after)
        now = self._clock()
        if change is Change.NONE:
            return None
        if change is Change.DETAIL and self._written_at is not None and now < self._written_at + DETAIL_INTERVAL:
            return self._written_at + DETAIL_INTERVAL
        manifest = self._store.service(self._key)
        patch = difference((manifest or {}).get("status") or {}, without_blanks(after.to_manifest()))
        if patch:
            await self._patch(meta, patch)
        self._written_at = now
        return None

    async def _patch(self, meta: ObjectMeta, patch: Mapping[str, Any]) -> None:
        try:
            written = await self._cluster.patch(
                SERVICES_OF_OURS, meta.namespace, meta.name, {"status": dict(patch)}, MERGE_PATCH, "status"
            )
        except ApiError as error:
            if not error.not_found:
                raise
        else:
            self._store.put(SERVICES_OF_OURS, written)


def without_blanks(value: Any) -> Any:
    """Leave out empty texts, which say no more than their absence; some API servers take them for null and refuse."""
    if isinstance(value, dict):
        return {key: without_blanks(inner) for key, inner in value.items() if inner != ""}
    return [without_blanks(inner) for inner in value] if isinstance(value, list) else value


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The merge patch (RFC 7386) that turns `before` into `after`.

    >>> difference({"a": 1, "b": {"c": 2, "d": 3}, "e": 4}, {"a": 1, "b": {"c": 5, "d": 3}})
    {'b': {'c': 5}, 'e': None}
    """
    patch: dict[str, Any] = {key: None for key in before if key not in after}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            inner = difference(old, value)
            if inner:
                patch[key] = inner
        elif key not in before or old != value:
            patch[key] = value
    return patch
