"""S3 and everything that speaks its protocol (MinIO, Ceph, R2), through the Rust crate `object_store`.

Objects are read in ranges tied to the ETag seen in the listing, so that an object replaced half-way is noticed and
never mixed. The ETag itself is no checksum: it is an MD5 only for unencrypted, single-part uploads. What is verified
is the length, `SHA256SUMS` where the prefix holds one, and the header of safetensors files.
"""

from collections.abc import Generator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, PreconditionError, UnauthenticatedError
from obstore.store import S3Store

from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.fetch import names
from kvasir_runtime.fetch.source import Access, RemoteFile, Stream, TransientError, forbidden, not_found
from kvasir_runtime.fetch.uri import S3Address

RANGE = 16 << 20
"""Bytes of one request: short enough for a request's timeout on slow links, long enough to fill fast ones."""

SETTINGS = {
    "AWS_ACCESS_KEY_ID": "access_key_id",
    "AWS_SECRET_ACCESS_KEY": "secret_access_key",
    "AWS_SESSION_TOKEN": "session_token",
    "AWS_REGION": "region",
    "AWS_DEFAULT_REGION": "default_region",
    "AWS_ENDPOINT_URL": "endpoint",
    "AWS_ENDPOINT_URL_S3": "aws_endpoint_url_s3",
    "AWS_SKIP_SIGNATURE": "skip_signature",
}


class S3Source:
    """The objects below one prefix."""

    def __init__(self, address: S3Address, access: Access) -> None:
        self._address = address
        self._store = _store(address, access)
        self._place = f"s3://{address.bucket}/{address.prefix}"

    def list_files(self) -> list[RemoteFile]:
        found: dict[str, RemoteFile] = {}
        try:
            for page in obstore.list(self._store, self._address.prefix or None):
                for meta in page:
                    name = meta["path"].removeprefix(self._address.prefix).lstrip("/")
                    found[name] = RemoteFile(name, meta["size"], None, meta.get("e_tag"))
        except (BaseError, OSError, ValueError) as error:
            raise self._failure(error, self._place) from error
        if not found:
            raise not_found(f"{self._place} holds no objects", "check bucket and prefix, and AWS_ENDPOINT_URL")
        checksums = self._checksums(found)
        return [
            replace(file, sha256=checksums.get(name)) for name, file in sorted(found.items()) if names.is_wanted(name)
        ]

    def open(self, file: RemoteFile, offset: int) -> Stream:
        return Stream(offset, self._ranges(file, offset))

    def close(self) -> None:
        """The store's connections end with it."""

    def _ranges(self, file: RemoteFile, offset: int) -> Generator[bytes]:
        assert file.size is not None
        while offset < file.size:
            chunk = self._range(file, offset, min(offset + RANGE, file.size))
            offset += len(chunk)
            yield chunk

    def _range(self, file: RemoteFile, begin: int, end: int) -> bytes:
        try:
            options: Any = {"range": (begin, end), "if_match": file.version}
            return bytes(obstore.get(self._store, self._key(file.name), options=options).bytes())
        except PreconditionError as error:
            raise KvasirError(
                Cause.WEIGHTS_CORRUPT,
                f"{self._place}/{file.name} was replaced while it was read",
                "upload new versions of a model below a new prefix; start again",
            ) from error
        except (BaseError, OSError, ValueError) as error:
            raise self._failure(error, f"{self._place}/{file.name}") from error

    def _checksums(self, found: dict[str, RemoteFile]) -> dict[str, str]:
        listing = found.get(names.CHECKSUMS)
        if listing is None or not listing.size:
            return {}
        return names.parse_checksums(b"".join(self._ranges(listing, 0)).decode("utf-8", "replace"))

    def _key(self, name: str) -> str:
        return f"{self._address.prefix}/{name}" if self._address.prefix else name

    def _failure(self, error: Exception, what: str) -> Exception:
        """Refusals and missing buckets are final, all else may pass."""
        text = " ".join(str(error).partition("Debug source:")[0].split())[:300]
        refused = isinstance(error, PermissionDeniedError | UnauthenticatedError)
        if refused or "403 Forbidden" in text or "401 Unauthorized" in text:  # listing gives a GenericError
            return forbidden(
                f"{what} refuses access: {text}",
                "put AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of a user who may list and read the bucket into the "
                "Secret that source.secretName names",
            )
        if isinstance(error, FileNotFoundError) or "NoSuchBucket" in text:
            return not_found(f"{what} does not exist", "check bucket and prefix, and AWS_ENDPOINT_URL")
        if isinstance(error, ValueError) or "301 Moved Permanently" in text:
            return KvasirError(Cause.INVALID_ARGUMENTS, f"{what}: {text}", "check AWS_REGION and AWS_ENDPOINT_URL")
        return TransientError(f"{what}: {text}")


def _store(address: S3Address, access: Access) -> S3Store:
    config: Any = {"default_region": "us-east-1"}
    config |= {key: value for variable, key in SETTINGS.items() if (value := access.get(variable)) is not None}
    endpoint = str(config.get("aws_endpoint_url_s3") or config.get("endpoint") or "")
    client: Any = {
        "allow_http": endpoint.startswith("http://"),
        "timeout": timedelta(seconds=max(60.0, 4 * access.timeout)),
        "connect_timeout": timedelta(seconds=access.timeout),
    }
    # Trying again is the downloader's: it counts, reports and can be stopped.
    retry: Any = {"max_retries": 1, "retry_timeout": timedelta(seconds=access.timeout)}
    return S3Store(address.bucket, config=config, client_options=client, retry_config=retry)
