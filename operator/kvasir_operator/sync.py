"""Filling the store before anything is done, and finding later what a watch may have missed."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final

from kvasir_operator import metrics
from kvasir_operator.cluster import SERVICES_OF_OURS, Cluster, Kind
from kvasir_operator.errors import ApiError
from kvasir_operator.resources import names
from kvasir_operator.store import KINDS, ServiceKey, Store

log = logging.getLogger(__name__)

CRD_SECONDS: Final = 3.0
"""Time between two looks for the CRD, which is usually installed in the same moment as the operator."""
COMPARE_SECONDS: Final = 300.0
"""Time between two comparisons. A watch that restarts may miss a deletion; nothing else is healed by this."""


def selector(kind: Kind) -> dict[str, str]:
    """Which objects of a kind are ours."""
    return {} if kind == SERVICES_OF_OURS else {"labelSelector": names.SERVICE_LABEL}


def scopes(namespaces: Iterable[str]) -> list[str | None]:
    """The namespaces to list, or None for all at once."""
    return [*namespaces] or [None]


async def wait_for_crd(cluster: Cluster, namespaces: Iterable[str]) -> None:
    """Return once the API server knows InferenceServices; raises ApiError for anything but their absence."""
    told = False
    while True:
        try:
            async for _ in cluster.pages(SERVICES_OF_OURS, scopes(namespaces)[0], query={"limit": 1}):
                return
        except ApiError as error:
            if not error.not_found:
                raise
        if not told:
            log.warning("the CRD of InferenceService is not installed: waiting for it (kubectl apply -k crds)")
            told = True
        await asyncio.sleep(CRD_SECONDS)


async def fill(store: Store, cluster: Cluster, namespaces: Iterable[str]) -> None:
    """List everything of ours. Raises ApiError."""
    for kind in KINDS:
        for namespace in scopes(namespaces):
            async for page, _ in cluster.pages(kind, namespace, query=selector(kind)):
                for manifest in page:
                    store.put(kind, manifest)
    metrics.SYNCED.set_to_current_time()


async def keep_comparing(
    store: Store, cluster: Cluster, namespaces: Iterable[str], wake: Callable[[ServiceKey], None]
) -> None:
    """Forget what has gone unnoticed, every five minutes, for ever."""
    while True:
        await asyncio.sleep(COMPARE_SECONDS)
        for kind in KINDS:
            for namespace in scopes(namespaces):
                try:
                    missed = await _compare(store, cluster, kind, namespace)
                except ApiError as error:
                    metrics.ERRORS.labels("compare", error.reason).inc()
                    log.warning("%s could not be compared with the cluster: %s", kind.plural, error)
                    continue
                for key in missed:
                    wake(key)
        metrics.SYNCED.set_to_current_time()


async def _compare(store: Store, cluster: Cluster, kind: Kind, namespace: str | None) -> set[ServiceKey]:
    present: list[str] = []
    version = ""
    async for page, listed in cluster.pages(kind, namespace, metadata_only=True, query=selector(kind)):
        present += [manifest["metadata"]["uid"] for manifest in page]
        version = version or listed
    return store.compare(kind, present, version, namespace)
