"""How requests for text ended, for who judges whether this process answers as it should."""

from http import HTTPStatus
from typing import Final

from starlette.types import Scope

from kvasir_runtime.edge.errors import ApiError

FAILURE: Final = "kvasir.failure"
"""Key of the scope under which the code of an error of the server's is left."""

COUNTED_PATHS: Final = frozenset({"/v1/completions", "/v1/chat/completions"})
"""Where clients get text."""

NOT_COUNTED: Final = frozenset({"draining", "loading", "sleeping", "request_ended"})
"""Codes of errors that say nothing of the server's health; the last one is that of a client which has gone."""


def note_failure(scope: Scope, error: ApiError) -> None:
    """Leave the code of an error that is not the client's."""
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        scope[FAILURE] = error.body.error.code


def has_failed(scope: Scope, status: int) -> bool | None:
    """Whether the server failed the request, or answered it (False); None where neither is to be said."""
    code = scope.get(FAILURE)
    if scope["path"] not in COUNTED_PATHS or code in NOT_COUNTED:
        return None
    if code is not None:
        return True
    return False if status == HTTPStatus.OK else None
