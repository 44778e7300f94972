"""What is remembered of warmups, of hand-overs and of when prefixes were collected. Losing it costs work done again."""

from collections import defaultdict
from collections.abc import Collection

from kvasir_operator.planning.state import Collected, HandOver, Warming
from kvasir_operator.store import ServiceKey


class Warmth:
    """By service, then by uid of the pod. Written by whoever warms, read by observation."""

    def __init__(self) -> None:
        self._warmings: dict[ServiceKey, dict[str, Warming]] = defaultdict(dict)
        self._handovers: dict[ServiceKey, dict[str, HandOver]] = defaultdict(dict)
        self._collected: dict[ServiceKey, Collected] = {}

    def warming(self, key: ServiceKey, uid: str) -> Warming | None:
        """The last warmup of a pod."""
        return self._warmings[key].get(uid) if key in self._warmings else None

    def handover(self, key: ServiceKey, uid: str) -> HandOver | None:
        """The last hand-over of a pod."""
        return self._handovers[key].get(uid) if key in self._handovers else None

    def collected(self, key: ServiceKey) -> Collected | None:
        """When prefixes were last collected, and from what."""
        return self._collected.get(key)

    def note_warming(self, key: ServiceKey, uid: str, warming: Warming) -> None:
        self._warmings[key][uid] = warming

    def note_handover(self, key: ServiceKey, uid: str, handover: HandOver) -> None:
        self._handovers[key][uid] = handover

    def note_collected(self, key: ServiceKey, collected: Collected) -> None:
        self._collected[key] = collected

    def keep_only(self, key: ServiceKey, uids: Collection[str]) -> None:
        """Forget the pods that are gone."""
        for book in (self._warmings, self._handovers):
            for uid in [uid for uid in book.get(key, ()) if uid not in uids]:
                del book[key][uid]

    def forget(self, key: ServiceKey) -> None:
        """Keep nothing of a service that is gone."""
        self._warmings.pop(key, None)
        self._handovers.pop(key, None)
        self._collected.pop(key, None)
