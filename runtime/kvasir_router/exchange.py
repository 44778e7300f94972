"""Heads of requests and answers on their way through."""

from collections.abc import Iterable
from typing import Any, Final

from kvasir_router.upstream import Headers

_HOP_BY_HOP: Final = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization"),
        *(b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect"),
    }
)
"""Of one connection, not of the request. RFC 9110, section 7.6.1."""

_OURS_TO_REPLICA: Final = _HOP_BY_HOP | {b"content-length", b"x-request-id", b"x-forwarded-for"}
_OURS_TO_CLIENT: Final = _HOP_BY_HOP | {b"x-request-id", b"date"}


def request_head(scope: Any, request_id: str, body_length: int) -> bytes:
    """What a replica is sent before the body; the body's length is known, since it is held to be sent again."""
    headers: Headers = scope["headers"]
    dropped = _OURS_TO_REPLICA | _named_by_connection(headers) if _has_connection(headers) else _OURS_TO_REPLICA
    target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
    lines = [scope["method"].encode(), b" ", target, b" HTTP/1.1\r\n"]
    for name, value in headers:
        if name not in dropped:
            lines += (name, b": ", value, b"\r\n")
    forwarded = b", ".join([*_values(headers, b"x-forwarded-for"), *_client(scope)])
    if forwarded:
        lines += (b"x-forwarded-for: ", forwarded, b"\r\n")
    if body_length or scope["method"] not in {"GET", "HEAD", "OPTIONS", "DELETE"}:
        lines += (b"content-length: ", str(body_length).encode(), b"\r\n")
    lines += (b"x-request-id: ", request_id.encode(), b"\r\n\r\n")
    return b"".join(lines)


def answer_headers(headers: Headers, request_id: str, *, close: bool) -> Headers:
    """What the client gets: the replica's headers but for those of the connection; `close`: it should go elsewhere."""
    dropped = _OURS_TO_CLIENT | _named_by_connection(headers) if _has_connection(headers) else _OURS_TO_CLIENT
    kept = [header for header in headers if header[0] not in dropped]
    kept.append((b"x-request-id", request_id.encode()))
    if close:
        kept.append((b"connection", b"close"))
    return kept


def header(headers: Headers, name: bytes) -> str | None:
    """The first value of a header, or None."""
    return next((value.decode("latin-1") for each, value in headers if each == name), None)


def is_event_stream(headers: Headers) -> bool:
    return any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers)


def _has_connection(headers: Headers) -> bool:
    return any(name == b"connection" for name, _ in headers)


def _named_by_connection(headers: Headers) -> frozenset[bytes]:
    return frozenset(token.strip().lower() for value in _values(headers, b"connection") for token in value.split(b","))


def _values(headers: Headers, wanted: bytes) -> Iterable[bytes]:
    return [value for name, value in headers if name == wanted]


def _client(scope: Any) -> Iterable[bytes]:
    return [scope["client"][0].encode()] if scope.get("client") else []
