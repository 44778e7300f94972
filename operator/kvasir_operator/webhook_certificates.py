"""Keeps the webhook's certificates: in a Secret, in the webhook's configurations and in the server's TLS context.

Every replica of the operator does all of this by itself, leader or not, since each is asked by the API server. Whoever
finds that something is due writes the Secret; the others take what it made, since such a write names the version that
it replaces. Nobody serves a certificate whose authority was not in the configurations a turn ago.
"""

import asyncio
import base64
import binascii
import contextlib
import logging
import os
import ssl
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from kvasir_operator import metrics
from kvasir_operator.certificates import Certificates
from kvasir_operator.cluster import MUTATING, SECRETS, STRATEGIC_PATCH, VALIDATING, Cluster, Kind
from kvasir_operator.errors import CONFLICT, ApiError
from kvasir_operator.resources import names

log = logging.getLogger(__name__)

TURN_SECONDS: Final = 30.0
"""Time between two looks at the Secret and the configurations: how long a change by hand stays unnoticed."""
RETRY_SECONDS: Final = 10.0
"""Time until the next look after one that failed."""
ATTEMPTS: Final = 3
"""Looks at the Secret in one turn, of which each but the last found that another replica was quicker."""


class CertificateKeeper:
    """Keeps `context` able to serve. `turn` may be called at any time, by any number of replicas."""

    def __init__(
        self, cluster: Cluster, namespace: str, context: ssl.SSLContext, clock: Callable[[], datetime]
    ) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._context = context
        self._clock = clock
        self._served: Certificates | None = None

    async def keep(self) -> None:
        """Take turns for ever; what fails is logged and tried again, since the operator works without a webhook."""
        while True:
            done = await self.guarded_turn()
            await asyncio.sleep(TURN_SECONDS if done else RETRY_SECONDS)

    async def guarded_turn(self) -> bool:
        """A turn whose failure is logged; returns whether it succeeded."""
        try:
            await self.turn()
        except ApiError as error:
            metrics.ERRORS.labels("webhook", error.reason).inc()
            log.warning("the webhook's certificates could not be looked after: %s", error)
            return False
        return True

    async def turn(self) -> None:
        """Agree with the other replicas, have the API server trust that, then serve it. Raises ApiError."""
        agreed = await self._agree()
        fresh = await self._publish(base64.b64encode(agreed.bundle).decode())
        if agreed != self._served and not (fresh and self._good_under(agreed.bundle)):
            self._load(agreed)

    def _good_under(self, bundle: bytes) -> bool:
        """Whether who trusts `bundle` accepts what is served now for another turn."""
        served = self._served
        return served is not None and served.authority in bundle and self._clock() < served.expires

    async def _agree(self) -> Certificates:
        for _ in range(ATTEMPTS - 1):
            try:
                return await self._read_or_write()
            except ApiError as error:
                if error.status != CONFLICT:
                    raise
        return await self._read_or_write()

    async def _read_or_write(self) -> Certificates:
        """What the Secret holds, once it holds what it should; a conflict when another replica was quicker."""
        secret = await self._secret()
        found = Certificates.read(_decode(secret.get("data") or {})) if secret is not None else None
        due = self._due(found)
        if due is None:
            assert found is not None
            return found
        if secret is None:
            await self._cluster.create(SECRETS, self._namespace, manifest_of(self._namespace, due))
        else:
            body = manifest_of(self._namespace, due, resourceVersion=secret["metadata"]["resourceVersion"])
            await self._cluster.replace(SECRETS, self._namespace, body)
        log.info("made new certificates of the webhook in Secret %s/%s", self._namespace, names.WEBHOOK)
        return due

    def _due(self, found: Certificates | None) -> Certificates | None:
        """What the Secret should hold in place of `found`; replicas that still serve what is lost stay trusted."""
        host, now = names.webhook_host(self._namespace), self._clock()
        if found is not None:
            return found.renewed(host, now)
        return Certificates.make(host, now, self._served.authority if self._served is not None else b"")

    async def _secret(self) -> Mapping[str, Any] | None:
        try:
            return await self._cluster.get(SECRETS, self._namespace, names.WEBHOOK)
        except ApiError as error:
            if error.not_found:
                return None
            raise

    async def _publish(self, text: str) -> bool:
        """Have the configurations name the authorities, in base64; returns whether one did not yet.

        Who wants one of the two alone leaves the other out; without any, the first one's absence is raised.
        """
        fresh, missing = [], []
        for kind in (VALIDATING, MUTATING):
            try:
                fresh.append(await self._publish_to(kind, text))
            except ApiError as error:
                if not error.not_found:
                    raise
                missing.append(error)
        if not fresh:
            raise missing[0]
        return any(fresh)

    async def _publish_to(self, kind: Kind, text: str) -> bool:
        configuration = await self._cluster.get(kind, "", names.WEBHOOK_CONFIGURATION)
        hooks = [
            {"name": hook["name"], "clientConfig": {"caBundle": text}}
            for hook in configuration.get("webhooks") or []
            if hook["clientConfig"].get("caBundle") != text
        ]
        if hooks:
            body = {"webhooks": hooks}
            await self._cluster.patch(kind, "", names.WEBHOOK_CONFIGURATION, body, STRATEGIC_PATCH)
        return bool(hooks)

    def _load(self, certificates: Certificates) -> None:
        """Serve these from the next connection on."""
        load(self._context, certificates)
        self._served = certificates
        metrics.WEBHOOK_CERTIFICATE_EXPIRY.set(certificates.expires.timestamp())
        log.info("the webhook's certificate is valid until %s", certificates.expires)


def load(context: ssl.SSLContext, certificates: Certificates) -> None:
    """Put the pair into a context, which takes files alone: this one has no name and lies in memory."""
    descriptor = os.memfd_create("webhook", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb") as file:
        file.write(certificates.key + certificates.certificate)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")


def manifest_of(namespace: str, certificates: Certificates, **metadata: str) -> dict[str, Any]:
    """The Secret that holds the certificates."""
    data = {key: base64.b64encode(value).decode() for key, value in certificates.to_data().items()}
    return {
        "apiVersion": SECRETS.api_version,
        "kind": "Secret",
        "metadata": {
            "name": names.WEBHOOK,
            "namespace": namespace,
            "labels": {names.NAME_LABEL: names.OPERATOR},
            **metadata,
        },
        "type": "kubernetes.io/tls",
        "data": data,
    }


def _decode(data: Mapping[str, str]) -> dict[str, bytes]:
    """The values of a Secret; those that are no base64 count as missing."""
    decoded = {}
    for key, value in data.items():
        with contextlib.suppress(binascii.Error):
            decoded[key] = base64.b64decode(value)
    return decoded
