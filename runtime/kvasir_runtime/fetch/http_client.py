"""HTTP as the sources need it: describe a file, read it from any byte on, and say plainly what went wrong."""

import ssl
from collections.abc import Generator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx2

from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.fetch.source import Access, RemoteFile, Stream, TransientError, forbidden, not_found
from kvasir_runtime.fetch.uri import without_credentials

_RANGE_NOT_SATISFIABLE = 416
_HEAD_IS_REFUSED = (403, 405, 501)
"""Signed URLs and simple servers often allow GET alone."""


class HttpClient:
    """A pool of connections that sends `headers` to the hosts it is asked to talk to, not to where they redirect.

    `advice` is the remedy shown when a server refuses access.
    """

    def __init__(self, access: Access, headers: Mapping[str, str], advice: str) -> None:
        self._advice = advice
        self._client = httpx2.Client(
            timeout=access.timeout,
            follow_redirects=True,  # httpx2 drops Authorization when the host changes
            verify=ssl.create_default_context(cafile=access.get("SSL_CERT_FILE")),
            headers={"accept-Encoding": "identity", **headers},
        )

    def close(self) -> None:
        self._client.close()

    def describe(self, url: str, name: str, sha256: str | None = None) -> RemoteFile | None:
        """Size and version of the file behind `url`, or None when there is none."""
        response = self._send("HEAD", url, {})
        if response.status_code in _HEAD_IS_REFUSED:
            response = self._send("GET", url, {"Range": "bytes=0-0"}, missing_ok=True)
            response.close()
        if response.status_code in (404, 410):
            return None
        return RemoteFile(name, _length(response), sha256, _version(response.headers))

    def open(self, url: str, version: str | None, offset: int) -> Stream:
        """Begin to read at `offset`, if the server can and still has that version; else at the beginning."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        if offset and version:
            headers["If-Range"] = version
        response = self._send("GET", url, headers)
        if response.status_code == _RANGE_NOT_SATISFIABLE:
            response.close()
            return self.open(url, None, 0)
        begins = response.headers.get("Content-Range", "bytes 0-") if response.status_code == 206 else "bytes 0-"
        return Stream(int(begins.removeprefix("bytes ").partition("-")[0]), _body(response))

    def small_text(self, url: str, name: str, longest: int = 64 << 20) -> str | None:
        """A listing's text, or None when there is none; raises KvasirError above `longest` bytes."""
        response = self._send("GET", url, {}, missing_ok=True)
        if not response.is_success:
            response.close()
            return None
        content = bytearray()
        for part in _body(response):
            content += part
            if len(content) > longest:
                raise KvasirError(
                    Cause.MODEL_INVALID, f"{name} has more than {longest} bytes", "check that it is the right file"
                )
        return content.decode("utf-8", "replace")

    def _send(self, method: str, url: str, headers: Mapping[str, str], *, missing_ok: bool = False) -> httpx2.Response:
        request = self._client.build_request(method, url, headers=headers)
        try:
            response = self._client.send(request, stream=True)
        except httpx2.TooManyRedirects as error:
            raise not_found(f"{without_credentials(url)} redirects in a circle") from error
        except httpx2.TransportError as error:
            raise _transport_failure(error, without_credentials(url)) from error
        if method == "HEAD":
            response.close()
            missing_ok = True
        elif response.status_code == _RANGE_NOT_SATISFIABLE:
            return response
        self._check(response, head=method == "HEAD", missing_ok=missing_ok)
        return response

    def _check(self, response: httpx2.Response, *, head: bool, missing_ok: bool) -> None:
        """Turn a status into an error: what may pass later is transient, the rest is final."""
        status, url = response.status_code, without_credentials(str(response.url))
        missing = status in (404, 410)
        if response.is_success or (missing and missing_ok) or (head and status in _HEAD_IS_REFUSED):
            return
        response.close()
        if missing:
            raise not_found(f"{url} does not exist ({status})")
        if status in (401, 403):
            raise forbidden(f"{url} refuses access ({status})", self._advice)
        if status in (408, 425, 429) or status >= 500:
            raise TransientError(f"{url} answers {status}", retry_after(response.headers.get("Retry-After", "")))
        raise KvasirError(Cause.SOURCE_UNREACHABLE, f"{url} answers {status} {response.reason_phrase}", "check the URI")


def retry_after(value: str, now: datetime | None = None) -> float | None:
    """Seconds that a Retry-After header asks for, given as a number or as a date; None when it says nothing."""
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - (now or datetime.now(UTC))).total_seconds())
    except (ValueError, TypeError):
        return None


def _body(response: httpx2.Response) -> Generator[bytes]:
    """The body in chunks; a broken connection is a TransientError."""
    try:
        yield from response.iter_raw()  # as it comes: what a larger buffer holds is lost when the connection breaks
    except httpx2.TransportError as error:
        raise TransientError(f"the connection broke: {str(error) or type(error).__name__}") from error
    finally:
        response.close()


def _transport_failure(error: httpx2.TransportError, where: str) -> Exception:
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return KvasirError(
            Cause.SOURCE_UNREACHABLE,
            f"the certificate of {where} is not trusted: {error}",
            "mount the authority's certificate and name it in SSL_CERT_FILE",
        )
    if isinstance(error, httpx2.UnsupportedProtocol):
        return KvasirError(Cause.INVALID_ARGUMENTS, f"{where}: {error}", "use https://")
    return TransientError(f"{where}: {str(error) or type(error).__name__}")


def _length(response: httpx2.Response) -> int | None:
    """Whole length of the file, from a HEAD or from `Content-Range: bytes 0-0/1234`."""
    total = response.headers.get("Content-Range", "").rpartition("/")[2] or response.headers.get("Content-Length", "")
    return int(total) if total.isdecimal() else None


def _version(headers: httpx2.Headers) -> str | None:
    """A validator that RFC 9110 allows in If-Range: a strong ETag, else the date of the last change."""
    etag = str(headers.get("ETag", ""))
    changed: str | None = headers.get("Last-Modified")
    return etag if etag.startswith('"') else changed
