"""What kopf is told: watches and nothing else, so that no finalizer appears on any object."""

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, cast

import kopf
from kubernetes.aio.client import Configuration

from kvasir_operator import handlers
from kvasir_operator.cluster import Kind
from kvasir_operator.reconciler import Reconciler


class Listener:
    """Takes the place of the reconciler."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str | None, str]] = []

    def notice(self, kind: Kind, change: str | None, manifest: dict[str, Any]) -> None:
        self.heard.append((kind.plural, change, manifest["metadata"]["name"]))


async def test_every_handler_passes_its_event_on() -> None:
    """One for each kind, at most fifteen lines each."""
    listener = Listener()
    registry = handlers.make_registry(cast("Reconciler", listener), Configuration())
    found = list(registry._watching.get_all_handlers())
    for handler in found:
        function = cast("Callable[..., Awaitable[None]]", handler.fn)
        await function(event={"type": "MODIFIED", "object": {"metadata": {"name": "x"}}})
        assert len(inspect.getsource(handler.fn).splitlines()) <= 15
    assert {kind for kind, _, _ in listener.heard} >= {"inferenceservices", "pods", "services"}
    assert len(listener.heard) == len(found)


def test_no_handler_asks_for_a_finalizer() -> None:
    """Deleting a service never waits for the operator."""
    registry = handlers.make_registry(cast("Reconciler", Listener()), Configuration())
    assert list(registry._changing.get_all_handlers()) == []
    assert list(registry._spawning.get_all_handlers()) == []


def test_kopf_writes_nothing_of_its_own() -> None:
    """No Events, no peering, no search for kinds; watches are narrowed by the server."""
    settings = handlers.make_settings()
    assert not settings.posting.enabled
    assert settings.peering.standalone
    assert settings.scanning.disabled
    assert len(settings.watching.label_selectors) >= 2


async def test_kopf_uses_the_credentials_of_the_client() -> None:
    """Token, certificates and address, whatever they came from."""
    configuration = Configuration(host="https://api:6443")
    configuration.api_key["BearerToken"] = "bearer secret"
    configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file = "ca", "cert", "key"
    found = await handlers.connection(configuration)
    assert (found.server, found.scheme, found.token) == ("https://api:6443", "Bearer", "secret")
    assert (found.ca_path, found.certificate_path, found.private_key_path) == ("ca", "cert", "key")
    anonymous = await handlers.connection(Configuration(host="http://api"))
    assert (anonymous.scheme, anonymous.token) == (None, None)


def test_kopf_keeps_nothing_on_objects_and_compares_nothing() -> None:
    """By default it copies every object twice for each event, for handlers that the operator does not have."""
    persistence = handlers.make_settings().persistence
    body = kopf.Body({"metadata": {"name": "x"}, "spec": {"big": "object"}})
    assert persistence.diffbase_storage.build(body=body) == {}
    assert persistence.diffbase_storage.fetch(body=body) is None
    essence = persistence.diffbase_storage.build(body=body)
    assert persistence.progress_storage.clear(essence=essence) is essence
