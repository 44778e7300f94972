"""Collecting the prefixes of serving replicas, and keeping them in the service's Secret."""

import asyncio
import base64
import binascii
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from kvasir_operator.api.model import WarmupFromTraffic
from kvasir_operator.api.v1alpha1 import ObjectMeta
from kvasir_operator.cluster import MERGE_PATCH, SECRETS, Cluster
from kvasir_operator.errors import PRECONDITION_FAILED, ApiError, PodError
from kvasir_operator.fleet.prefix_codec import decode, encode
from kvasir_operator.fleet.prefixes import Budget, KeptPrefix, KeptPrefixes, merge, read_list
from kvasir_operator.planning.actions import KeepPrefixes, ServingPod
from kvasir_operator.planning.state import Collected
from kvasir_operator.resources import names
from kvasir_operator.resources.prefixes import build_prefixes_secret, encoded
from kvasir_operator.scrape import Scraper
from kvasir_operator.store import ServiceKey, owner_uid
from kvasir_operator.warmth import Warmth

KEPT_REVISIONS: Final = 4
"""Revisions of which prefixes are kept: those with pods first, then the latest."""


class PrefixKeeper:
    """Reads and writes one Secret a service. Holds nothing between calls."""

    def __init__(self, cluster: Cluster, scraper: Scraper, warmth: Warmth, clock: Callable[[], datetime]) -> None:
        self._cluster = cluster
        self._scraper = scraper
        self._warmth = warmth
        self._clock = clock

    async def read(self, meta: ObjectMeta) -> Mapping[str, KeptPrefixes]:
        """What is kept, by revision; raises ApiError. What somebody broke by hand counts as absent."""
        return (await self._read(meta)) or {}

    async def collect(self, meta: ObjectMeta, traffic: WarmupFromTraffic, action: KeepPrefixes, token: str) -> None:
        """Ask the pods, merge, and write; raises ApiError, and PodError where no pod answers."""
        told = await asyncio.gather(*(self.ask(pod, traffic, token) for pod in action.pods), return_exceptions=True)
        errors = [each for each in told if isinstance(each, BaseException)]
        for error in errors:
            if not isinstance(error, PodError) or len(errors) == len(told):
                raise error
        kept, now = await self._read(meta), self._clock()
        budget = Budget(traffic.top_prefixes, traffic.max_tokens)
        found: dict[str, list[list[KeptPrefix]]] = {}
        for pod, each in zip(action.pods, told, strict=True):
            if not isinstance(each, BaseException):
                found.setdefault(pod.revision, []).append(each)
        merged = {
            revision: merge([kept[revision]] if kept and revision in kept else [], lists, budget, now)
            for revision, lists in found.items()
        }
        await self._write(meta, kept, merged)
        key = ServiceKey(meta.namespace, meta.name)
        self._warmth.note_collected(key, Collected(now, action.basis))

    async def ask(self, pod: ServingPod, traffic: WarmupFromTraffic, token: str) -> list[KeptPrefix]:
        """The hottest prefixes of one pod; raises PodError."""
        listed = await self._scraper.prefixes(
            pod.ip, token, traffic.top_prefixes, traffic.max_tokens, salted=traffic.salted
        )
        return list(read_list(listed, pod.tokenizer, salted=traffic.salted))

    async def _read(self, meta: ObjectMeta) -> dict[str, KeptPrefixes] | None:
        """None without a Secret; raises ApiError for one that belongs to somebody else."""
        try:
            secret = await self._cluster.get(SECRETS, meta.namespace, names.prefixes_secret_name(meta.name))
        except ApiError as error:
            if not error.not_found:
                raise
            return None
        if owner_uid(secret) != meta.uid:
            name = secret["metadata"]["name"]
            message = f"Secret {name} exists and does not belong to InferenceService {meta.name}: rename one of them"
            raise ApiError(PRECONDITION_FAILED, "NameTaken", message)
        found = {revision: self._decode(text) for revision, text in (secret.get("data") or {}).items()}
        return {revision: kept for revision, kept in found.items() if kept is not None}

    def _decode(self, text: Any) -> KeptPrefixes | None:
        try:
            return decode(base64.b64decode(str(text), validate=True), self._clock())
        except binascii.Error:
            return None

    async def _write(
        self, meta: ObjectMeta, before: Mapping[str, KeptPrefixes] | None, merged: Mapping[str, KeptPrefixes]
    ) -> None:
        data = {revision: encode(kept) for revision, kept in merged.items()}
        if before is None:
            await self._cluster.create(SECRETS, meta.namespace, build_prefixes_secret(meta, data))
            return
        old = sorted(before.keys() - merged.keys(), key=lambda revision: before[revision].at, reverse=True)
        dropped = old[max(0, KEPT_REVISIONS - len(merged)) :]
        body = {"data": {**encoded(data), **dict.fromkeys(dropped)}}
        name = names.prefixes_secret_name(meta.name)
        await self._cluster.patch(SECRETS, meta.namespace, name, body, MERGE_PATCH)
