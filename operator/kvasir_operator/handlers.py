"""What kopf calls: one handler for each kind that is watched. They only pass the event on.

Handlers are `on.event`: kopf puts a finalizer on objects for any other sort, and nothing may wait for the operator to
be deleted. The watches are narrowed by the server to objects of ours; nodes are watched for their devices, and for
being cordoned.
"""

import asyncio
from typing import Any, cast

import kopf
from kubernetes.aio.client import Configuration

from kvasir_operator.api import v1alpha1
from kvasir_operator.cluster import BUDGETS, NETWORK_POLICIES, NODES, PODS, REVISIONS, SERVICES, SERVICES_OF_OURS
from kvasir_operator.reconciler import Reconciler
from kvasir_operator.resources import names


class NoDiffs(kopf.DiffBaseStorage):
    """Compares nothing: no handler asks what changed, and by default kopf copies every object twice to find out."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return None


class NoProgress(kopf.ProgressStorage):
    """Keeps nothing: handlers of events have no progress, and objects get no annotations of ours."""

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return None

    def purge(self, **_: Any) -> None:
        return None

    def touch(self, **_: Any) -> None:
        return None

    def clear(self, *, essence: Any) -> Any:
        return essence


def make_registry(reconciler: Reconciler, configuration: Configuration) -> kopf.OperatorRegistry:
    """Handlers that tell `reconciler`, with the credentials that the operator itself uses."""
    registry = kopf.OperatorRegistry()

    @kopf.on.event(v1alpha1.GROUP, v1alpha1.VERSION, v1alpha1.PLURAL, registry=registry)
    async def on_inference_service(event: kopf.RawEvent, **_: Any) -> None:
        reconciler.notice(SERVICES_OF_OURS, event["type"], event["object"])

    @kopf.on.event("", "v1", "pods", registry=registry, labels={names.SERVICE_LABEL: kopf.PRESENT})
    async def on_pod(event: kopf.RawEvent, **_: Any) -> None:
        reconciler.notice(PODS, event["type"], event["object"])

    @kopf.on.event("", "v1", "services", registry=registry, labels={names.SERVICE_LABEL: kopf.PRESENT})
    async def on_service(event: kopf.RawEvent, **_: Any) -> None:
        reconciler.notice(SERVICES, event["type"], event["object"])

    @kopf.on.event("apps", "v1", "controllerrevisions", registry=registry, labels={names.SERVICE_LABEL: kopf.PRESENT})
    async def on_revision(event: kopf.RawEvent, **_: Any) -> None:
        reconciler.notice(REVISIONS, event["type"], event["object"])

    @kopf.on.event("policy", "poddisruptionbudgets", registry=registry, labels={names.SERVICE_LABEL: kopf.PRESENT})
    async def on_budget(event: kopf.RawEvent, **_: Any) -> None:
        reconciler.notice(BUDGETS, event["type"], event["object"])

    @kopf.on.event(
        "networking.k8s.io", "networkpolicies", registry=registry, labels={names.SERVICE_LABEL: kopf.PRESENT}
    )
    async def on_network_policy(event: kopf.RawEvent, **_: Any) -> None:
        reconciler.notice(NETWORK_POLICIES, event["type"], event["object"])

    @kopf.on.event("", "v1", "nodes", registry=registry)
    async def on_node(event: kopf.RawEvent, **_: Any) -> None:
        reconciler.notice(NODES, event["type"], event["object"])

    @kopf.on.login(registry=registry)
    async def on_login(**_: Any) -> kopf.ConnectionInfo:
        return await connection(configuration)

    return registry


async def connection(configuration: Configuration) -> kopf.ConnectionInfo:
    """The credentials of the client, as kopf wants them; read anew at each login, since tokens are renewed."""
    scheme, _, token = (await configuration.get_api_key_with_prefix("BearerToken") or "").rpartition(" ")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        scheme=scheme.capitalize() or None,
        token=token or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
    )


def make_settings() -> kopf.OperatorSettings:
    """Watch what is ours, and nodes; write nothing; look for no new kinds."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.persistence.diffbase_storage = NoDiffs()
    settings.persistence.progress_storage = NoProgress()
    for plural in ("pods", "services"):
        settings.watching.label_selectors["v1", plural] = names.SERVICE_LABEL
    for group, plural in (
        ("apps", "controllerrevisions"),
        ("policy", "poddisruptionbudgets"),
        ("networking.k8s.io", "networkpolicies"),
    ):
        settings.watching.label_selectors[group, plural] = names.SERVICE_LABEL
    return settings


async def watch(
    reconciler: Reconciler, configuration: Configuration, namespaces: list[str], ready: asyncio.Event
) -> None:
    """Run kopf, which sets `ready` once it watches, until it is cancelled; raises what ends it."""
    await kopf.operator(
        registry=make_registry(reconciler, configuration),
        settings=make_settings(),
        namespaces=namespaces,
        clusterwide=not namespaces,
        ready_flag=ready,
        # Without peering nobody reads it; kopf would look up a user name, which the image's account has not.
        identity=cast("Any", names.OPERATOR),
    )
