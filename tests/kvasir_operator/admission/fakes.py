"""The API server's part in the webhook: one Secret with versions, and the webhook's two configurations."""

import base64
import copy
from typing import Any, cast

from kvasir_operator.certificates import Certificates
from kvasir_operator.cluster import MUTATING, SECRETS, VALIDATING, Cluster, Kind
from kvasir_operator.errors import ApiError
from kvasir_operator.resources import names

Manifest = dict[str, Any]


class FakeApi:
    """Has the methods of `Cluster` that the webhook calls, and counts what is written."""

    def __init__(self) -> None:
        self.secret: Manifest | None = None
        self.configurations: dict[Kind, Manifest] = {
            VALIDATING: {"webhooks": [{"name": "a.kvasir.dev", "clientConfig": {"service": {"path": "/validate"}}}]},
            MUTATING: {"webhooks": [{"name": "b.kvasir.dev", "clientConfig": {"service": {"path": "/mutate"}}}]},
        }
        self.writes: list[str] = []
        self.rival: Manifest | None = None
        """A Secret that another replica writes between our look and our write."""

    @property
    def cluster(self) -> Cluster:
        return cast("Cluster", self)

    @property
    def bundle(self) -> bytes:
        """What the API server trusts, whichever of the two it asks."""
        hooks = [hook for each in self.configurations.values() for hook in each["webhooks"]]
        [text] = {hook["clientConfig"].get("caBundle", "") for hook in hooks}
        return base64.b64decode(text)

    @property
    def certificates(self) -> Certificates:
        """What the Secret holds."""
        assert self.secret is not None
        found = Certificates.read({key: base64.b64decode(value) for key, value in self.secret["data"].items()})
        assert found is not None
        return found

    async def get(self, kind: Kind, namespace: str, name: str) -> Manifest:
        found = self.secret if kind == SECRETS else self.configurations.get(kind)
        assert (namespace, name) == (
            ("kvasir-system", names.WEBHOOK) if kind == SECRETS else ("", names.WEBHOOK_CONFIGURATION)
        )
        if found is None:
            raise ApiError(404, "NotFound", f'"{name}" not found')
        return copy.deepcopy(found)

    async def create(self, kind: Kind, namespace: str, body: Manifest) -> Manifest:
        self._rival()
        if self.secret is not None:
            raise ApiError(409, "AlreadyExists", "it exists")
        return self._store(body)

    async def replace(self, kind: Kind, namespace: str, body: Manifest) -> Manifest:
        self._rival()
        if self.secret is None or body["metadata"]["resourceVersion"] != self.secret["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", "there is a newer one")
        return self._store(body)

    async def patch(self, kind: Kind, namespace: str, name: str, body: Manifest, content_type: str) -> Manifest:
        assert content_type == "application/strategic-merge-patch+json"
        configuration = self.configurations[kind]
        self.writes.append(kind.plural)
        for wanted in body["webhooks"]:
            [found] = [each for each in configuration["webhooks"] if each["name"] == wanted["name"]]
            found["clientConfig"] |= wanted["clientConfig"]
        return configuration

    def put(self, body: Manifest) -> None:
        """A Secret that somebody else wrote."""
        version = int(self.secret["metadata"]["resourceVersion"]) + 1 if self.secret else 1
        self.secret = copy.deepcopy(body)
        self.secret["metadata"]["resourceVersion"] = str(version)

    def _store(self, body: Manifest) -> Manifest:
        self.writes.append("secret")
        self.put(body)
        return body

    def _rival(self) -> None:
        if self.rival is not None:
            body, self.rival = self.rival, None
            self.put(body)
