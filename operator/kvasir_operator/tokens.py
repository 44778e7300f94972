"""The bearer tokens of the operator ports: one Secret a service, read by name when needed and kept for a while."""

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from kvasir_operator.api.v1alpha1 import ObjectMeta
from kvasir_operator.cluster import SECRETS, Cluster
from kvasir_operator.errors import ApiError
from kvasir_operator.planning.state import ObjectState, Refusal
from kvasir_operator.resources import names
from kvasir_operator.store import owner_uid

TRUSTED_FOR: Final = timedelta(minutes=10)
"""How long a Secret is believed to be as it was seen. One that was missing is made, which shows whether it still is."""
DOUBTED_FOR: Final = timedelta(seconds=5)
"""The same when a pod cannot mount it, or refuses the token."""


@dataclass(frozen=True, slots=True)
class Token:
    """A service's token, the state of its Secret, and why that could not be read."""

    state: ObjectState = ObjectState.MISSING
    value: str | None = None
    checked_at: datetime | None = None
    refusal: Refusal | None = None


class Tokens:
    """Reads Secrets by name. Keyed by the uid of the InferenceService."""

    def __init__(self, cluster: Cluster, clock: Callable[[], datetime]) -> None:
        self._cluster = cluster
        self._clock = clock
        self._known: dict[str, Token] = {}

    async def look(self, meta: ObjectMeta, *, doubted: bool) -> Token:
        """The token; the Secret is read when it is doubted, or was not read for long.

        Raises ApiError when the API server does not answer; that it refuses is told in the Token.
        """
        known, now = self.known(meta), self._clock()
        limit = DOUBTED_FOR if doubted else TRUSTED_FOR
        if known.checked_at is not None and now - known.checked_at < limit:
            return known
        try:
            secret = await self._cluster.get(SECRETS, meta.namespace, names.admin_secret_name(meta.name))
        except ApiError as error:
            self._known[meta.uid] = _unread(error, now)
        else:
            self.keep(meta, secret)
        return self.known(meta)

    def known(self, meta: ObjectMeta) -> Token:
        """What was seen last; missing before the first look."""
        return self._known.get(meta.uid, Token())

    def keep(self, meta: ObjectMeta, secret: Mapping[str, Any]) -> None:
        """Take in a Secret that was read or made."""
        value = _decode((secret.get("data") or {}).get(names.ADMIN_TOKEN_KEY))
        usable = value is not None and owner_uid(secret) == meta.uid
        state = ObjectState.CURRENT if usable else ObjectState.OUTDATED
        self._known[meta.uid] = Token(state, value if usable else None, self._clock())

    def forget(self, uid: str) -> None:
        self._known.pop(uid, None)


def _unread(error: ApiError, now: datetime) -> Token:
    if error.not_found:
        return Token(checked_at=now)
    if error.passing:
        raise error
    return Token(ObjectState.UNKNOWN, checked_at=now, refusal=Refusal("ReadSecret", "", str(error), now))


def _decode(value: str | None) -> str | None:
    try:
        return base64.b64decode(value).decode() or None if value else None
    except (binascii.Error, UnicodeDecodeError):
        return None
