"""Kubernetes Events about services. The same words become one Event with a count; a babbling service is cut short."""

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from kvasir_operator import metrics
from kvasir_operator.api.base import format_time
from kvasir_operator.api.v1alpha1 import API_VERSION, KIND, ObjectMeta
from kvasir_operator.cluster import EVENTS, MERGE_PATCH, Cluster
from kvasir_operator.errors import ApiError
from kvasir_operator.planning.actions import Note
from kvasir_operator.resources import names

log = logging.getLogger(__name__)

BURST: Final = 25
"""Events that a service may have at once."""
REFILL_SECONDS: Final = 60.0
"""After so long one more is granted. Both bounds are of the order of client-go's."""
REMEMBERED: Final = 5000
"""Events and services that are remembered; the longest unused go first."""
MESSAGE_LIMIT: Final = 1024
"""Characters of a message that the API server takes."""


@dataclass(slots=True)
class _Allowance:
    left: float
    at: datetime


class EventRecorder:
    """Writes Events. Never raises for the API server's sake: an Event that is lost is counted and logged."""

    def __init__(self, cluster: Cluster, clock: Callable[[], datetime], host: str) -> None:
        self._cluster = cluster
        self._clock = clock
        self._host = host
        self._counts: OrderedDict[str, int] = OrderedDict()
        self._allowances: OrderedDict[str, _Allowance] = OrderedDict()

    async def record(self, meta: ObjectMeta, note: Note) -> None:
        """Write the Event, or raise the count of the one that says the same."""
        if not self._allowed(meta.uid):
            metrics.EVENTS.labels("dropped").inc()
            return
        name = _event_name(meta, note)
        try:
            await self._write(meta, note, name)
        except ApiError as error:
            metrics.EVENTS.labels("failed").inc()
            level = logging.DEBUG if error.namespace_ends else logging.WARNING
            log.log(level, "Event %s for %s/%s was not written: %s", note.reason, meta.namespace, meta.name, error)
        else:
            metrics.EVENTS.labels("written").inc()

    async def _write(self, meta: ObjectMeta, note: Note, name: str) -> None:
        count = self._counts.get(name, 0)
        if count == 0:
            try:
                await self._cluster.create(EVENTS, meta.namespace, self._manifest(meta, note, name))
            except ApiError as error:
                if not error.already_exists:
                    raise
                count = await self._count_of(meta, name)
        if count:
            await self._raise_count(meta, note, name, count + 1)
        self._remember(name, count + 1)

    async def _count_of(self, meta: ObjectMeta, name: str) -> int:
        """How often an Event was written that an earlier process began."""
        async for page, _ in self._cluster.pages(
            EVENTS, meta.namespace, query={"fieldSelector": f"metadata.name={name}"}
        ):
            for event in page:
                return int(event.get("count") or 1)
        return 1

    async def _raise_count(self, meta: ObjectMeta, note: Note, name: str, count: int) -> None:
        """Events expire after an hour or so: one that has gone is made anew, with the count that it had."""
        body = {"count": count, "lastTimestamp": format_time(self._clock())}
        try:
            await self._cluster.patch(EVENTS, meta.namespace, name, body, MERGE_PATCH)
        except ApiError as error:
            if not error.not_found:
                raise
            await self._cluster.create(EVENTS, meta.namespace, self._manifest(meta, note, name) | {"count": count})

    def _remember(self, name: str, count: int) -> None:
        self._counts[name] = count
        self._counts.move_to_end(name)
        if len(self._counts) > REMEMBERED:
            self._counts.popitem(last=False)

    def _allowed(self, uid: str) -> bool:
        """Take one Event from the service's allowance, if there is one."""
        now = self._clock()
        allowance = self._allowances.pop(uid, None) or _Allowance(BURST, now)
        left = min(BURST, allowance.left + (now - allowance.at).total_seconds() / REFILL_SECONDS)
        allowed = left >= 1
        self._allowances[uid] = _Allowance(left - 1 if allowed else left, now)
        if len(self._allowances) > REMEMBERED:
            self._allowances.popitem(last=False)
        return allowed

    def _manifest(self, meta: ObjectMeta, note: Note, name: str) -> dict[str, Any]:
        now = format_time(self._clock())
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": meta.namespace},
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "namespace": meta.namespace,
                "name": meta.name,
                "uid": meta.uid,
            },
            "type": "Warning" if note.warning else "Normal",
            "reason": note.reason,
            "message": note.message[:MESSAGE_LIMIT],
            "source": {"component": names.OPERATOR, "host": self._host},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }


def _event_name(meta: ObjectMeta, note: Note) -> str:
    """The same name for the same words about the same object."""
    digest = hashlib.sha256(f"{meta.uid}\n{note.reason}\n{note.message}".encode()).hexdigest()
    return f"{meta.name}.{digest[:16]}"
