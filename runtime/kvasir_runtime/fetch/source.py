"""What every source can do: say which files there are, and stream one from any byte on."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from kvasir_runtime.contract.failures import Cause, KvasirError

CHUNK = 1 << 20
"""Bytes read from a disk at a time."""


@dataclass(frozen=True)
class RemoteFile:
    """One file of a source, as far as the source knows it beforehand.

    `version` changes when the content changes (ETag, commit): a half-fetched file of another version is not continued.
    """

    name: str
    size: int | None = None
    sha256: str | None = None
    version: str | None = None


@dataclass(frozen=True)
class Stream:
    """The bytes of a file from `offset` on; the source may have begun earlier than asked."""

    offset: int
    chunks: Generator[bytes]


class Source(Protocol):
    """A place that holds the files of one model. Methods may be called from several threads."""

    def list_files(self) -> list[RemoteFile]:
        """The wanted files. Raises KvasirError (ModelNotFound, SourceForbidden) or TransientError."""
        ...

    def open(self, file: RemoteFile, offset: int) -> Stream:
        """Begin to read. Raises KvasirError, or TransientError when another attempt may succeed."""
        ...

    def close(self) -> None:
        """End connections; nothing is read afterwards."""
        ...


class TransientError(Exception):
    """The source did not answer as it should, but may do so later. `retry_after` is in seconds, if it said so."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True)
class Access:
    """Everything a source needs besides its address: credentials and endpoints by their usual names, and a timeout."""

    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout: float = 30.0  # seconds without a byte

    def get(self, name: str) -> str | None:
        return self.environment.get(name) or None


def not_found(what: str, remedy: str = "check the URI") -> KvasirError:
    return KvasirError(Cause.MODEL_NOT_FOUND, what, remedy)


def forbidden(what: str, remedy: str) -> KvasirError:
    return KvasirError(Cause.SOURCE_FORBIDDEN, what, remedy)
