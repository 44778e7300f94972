"""Addresses of models, read once into a type of their own each."""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from kvasir_runtime.contract.failures import Cause, KvasirError

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
UNREADABLE_SUFFIXES = (".tar.zst", ".7z", ".rar", ".gguf")
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class HttpAddress:
    """A folder or an archive behind HTTP(S). `url` has neither query nor fragment lost, and no trailing slash."""

    url: str

    @property
    def is_archive(self) -> bool:
        return urlsplit(self.url).path.endswith(ARCHIVE_SUFFIXES)


@dataclass(frozen=True)
class S3Address:
    """Objects of `bucket` whose keys begin with `prefix` (no slash at either end; may be empty)."""

    bucket: str
    prefix: str


@dataclass(frozen=True)
class HubAddress:
    """A repository `org/name` of the Hugging Face hub at a branch, tag or commit."""

    repository: str
    revision: str


@dataclass(frozen=True)
class FileAddress:
    """A folder of this machine."""

    path: Path


Address = HttpAddress | S3Address | HubAddress | FileAddress


def parse_uri(uri: str) -> Address:
    """Read a source's URI; raises KvasirError (InvalidArguments) that quotes it and says what is wrong."""
    scheme, separator, rest = uri.partition("://")
    if not separator or not rest:
        raise _refused(uri, "it has no scheme", "write s3://, hf://, https:// or file://, then the place")
    match scheme:
        case "https" | "http":
            return _http(uri)
        case "s3":
            bucket, _, prefix = rest.partition("/")
            return S3Address(bucket, prefix.strip("/"))
        case "hf":
            return _hub(uri, rest)
        case "file":
            return _file(uri, rest)
        case "pvc":
            raise _refused(uri, "a volume claim is mounted, not fetched", "mount the claim and serve the folder in it")
        case _:
            raise _refused(uri, f"{scheme}:// is no known scheme", "use s3://, hf://, https:// or file://")


def without_credentials(uri: str) -> str:
    """`uri` fit for logs and status: user, password and query (signed URLs carry secrets there) are left out."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return uri
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=host, query="…" if parts.query else "", fragment="").geturl()


def _http(uri: str) -> HttpAddress:
    if not urlsplit(uri).hostname:
        raise _refused(uri, "it names no host", "write https://host/path")
    if urlsplit(uri).path.endswith(UNREADABLE_SUFFIXES):
        raise _refused(uri, "that kind of file cannot be read", f"use a folder or {', '.join(ARCHIVE_SUFFIXES)}")
    return HttpAddress(uri.partition("#")[0].rstrip("/"))


def _hub(uri: str, rest: str) -> HubAddress:
    repository, _, revision = rest.partition("@")
    if not _REPOSITORY.fullmatch(repository):
        raise _refused(uri, f"{repository!r} is no repository", "write hf://org/name or hf://org/name@revision")
    return HubAddress(repository, revision or "main")


def _file(uri: str, rest: str) -> FileAddress:
    if not rest.startswith("/"):
        raise _refused(uri, "the path is not absolute", "write file:///path, with three slashes")
    return FileAddress(Path(unquote(rest)))


def _refused(uri: str, why: str, remedy: str) -> KvasirError:
    return KvasirError(Cause.INVALID_ARGUMENTS, f"cannot read the URI {without_credentials(uri)!r}: {why}", remedy)
