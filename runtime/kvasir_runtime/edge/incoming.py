"""What is asked of every request before it is looked into: a usable id, a bounded body."""

import re
import uuid
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from kvasir_runtime.edge.errors import ApiError

MAX_BODY_BYTES: Final = 32 * 1024 * 1024
"""A prompt of 1,000,000 token ids takes 7 MB of JSON."""

QUIET_PATHS: Final = frozenset({"/health", "/ready", "/metrics", "/livez", "/readyz", "/startupz", "/admin/state"})
"""Asked every few seconds by machines: logged at debug level only."""

_USABLE_ID: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


def usable_id(given: str | None) -> str:
    """The client's id if it is safe to log and to send back, else a new one."""
    return given if given is not None and _USABLE_ID.fullmatch(given) else uuid.uuid4().hex


def check_length(headers: Mapping[str, str], limit: int = MAX_BODY_BYTES) -> None:
    """Refuse a body that says beforehand that it is larger than `limit` bytes."""
    length = headers.get("content-length", "0")
    if length.isdigit() and int(length) > limit:
        raise body_too_large(limit)


def body_too_large(limit: int = MAX_BODY_BYTES) -> ApiError:
    msg = f"the request body must be at most {limit} bytes"
    return ApiError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, msg, code="body_too_large")
