"""Who may come in at each port, and how much at a time. Asked before a request's body is read."""

from collections import Counter
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final, Protocol

from kvasir_runtime.edge.auth import BearerTokens
from kvasir_runtime.edge.errors import ApiError

OPEN_PATHS: Final = frozenset({"/health", "/metrics", "/version", "/docs", "/openapi.json", "/docs/oauth2-redirect"})
"""What needs no key: nothing of these shows prompts or costs the engine anything."""

COUNTED_PATHS: Final = frozenset({"/v1/completions", "/v1/chat/completions"})
"""What occupies the engine for as long as it is answered."""

KEY_BUSY_RETRY_AFTER_S: Final = 1.0


class Gate(Protocol):
    """One port's."""

    def enter(self, path: str, headers: Mapping[str, str]) -> Callable[[], None]:
        """Let a request in; what is returned is called when its answer is out. Raises ApiError."""


class UserGate:
    """API keys, where there are any, and how many generations each may have under way.

    The operator's token opens this door too: the operator compares revisions by what they answer.
    """

    def __init__(
        self, api_keys: BearerTokens, max_streams_per_key: int | None, operator_tokens: BearerTokens | None = None
    ) -> None:
        self._api_keys = api_keys
        self._operator_tokens = operator_tokens or BearerTokens()
        self._limit = max_streams_per_key
        self._under_way: Counter[bytes] = Counter()

    def enter(self, path: str, headers: Mapping[str, str]) -> Callable[[], None]:
        if path in OPEN_PATHS or not self._api_keys.required:
            return _nothing
        key = self._api_keys.identify(headers.get("authorization"))
        if key is None and self._operator_tokens.accepts(headers.get("authorization")):
            return _nothing
        if key is None:
            msg = "a valid API key is needed: send it as Authorization: Bearer KEY"
            raise ApiError(HTTPStatus.UNAUTHORIZED, msg, code="invalid_api_key")
        if self._limit is None or path not in COUNTED_PATHS:
            return _nothing
        if self._under_way[key] >= self._limit:
            msg = f"{self._limit} requests of this API key are under way, which is its limit; wait for one to end"
            raise ApiError(
                HTTPStatus.TOO_MANY_REQUESTS, msg, code="too_many_streams", retry_after_s=KEY_BUSY_RETRY_AFTER_S
            )
        self._under_way[key] += 1
        return lambda: self._leave(key)

    def _leave(self, key: bytes) -> None:
        self._under_way[key] -= 1
        if not self._under_way[key]:
            del self._under_way[key]


class OperatorGate:
    """The operator's token for /admin; probes and documentation are open."""

    def __init__(self, tokens: BearerTokens) -> None:
        self._tokens = tokens

    def enter(self, path: str, headers: Mapping[str, str]) -> Callable[[], None]:
        if not path.startswith("/admin"):
            return _nothing
        if not self._tokens.required:
            raise ApiError(HTTPStatus.FORBIDDEN, "/admin is off: start with --admin-token-file", code="admin_off")
        if self._tokens.identify(headers.get("authorization")) is None:
            msg = "the operator's token is needed: Authorization: Bearer TOKEN"
            raise ApiError(HTTPStatus.UNAUTHORIZED, msg, code="invalid_token")
        return _nothing


def _nothing() -> None:
    """Nothing was counted."""
