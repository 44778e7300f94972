"""Who may come in at the user port."""

import pytest
from starlette.datastructures import Headers

from kvasir_runtime.edge.auth import BearerTokens
from kvasir_runtime.edge.gates import UserGate
from kvasir_runtime.server.errors import ApiError


def bearer(token: str) -> Headers:
    return Headers({"authorization": f"Bearer {token}"})


def test_the_operators_token_opens_the_user_port() -> None:
    """Beside the keys, and without their bound; any other token does not."""
    gate = UserGate(BearerTokens(["key"]), 1, BearerTokens(["operator"]))
    gate.enter("/v1/completions", bearer("key"))
    for _ in range(3):
        gate.enter("/v1/completions", bearer("operator"))
    with pytest.raises(ApiError):
        gate.enter("/v1/completions", bearer("key"))
    with pytest.raises(ApiError):
        gate.enter("/v1/completions", bearer("other"))


def test_without_an_operators_token_keys_alone_open_it() -> None:
    """An empty token is none."""
    with pytest.raises(ApiError):
        UserGate(BearerTokens(["key"]), None, BearerTokens()).enter("/v1/models", bearer(""))
