"""One file from a source to the disk: continued where it broke, verified, and renamed only when whole."""

import errno
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.contract.quantities import format_bytes
from kvasir_runtime.fetch.progress import Reporter
from kvasir_runtime.fetch.retry import RetryPolicy, Stopped
from kvasir_runtime.fetch.source import CHUNK, RemoteFile, Source, TransientError

PARTIAL = ".partial"
"""Folder below the destination that holds what is not whole yet."""


@dataclass(frozen=True)
class LocalFile:
    """A whole, verified file of the destination."""

    name: str
    size: int
    sha256: str


class Part:
    """The beginning of a file on disk, with its SHA-256 so far. Owned by one thread."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self.path = path
        self._digest, self.size = hash_of(path)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def restart(self) -> None:
        self._digest, self.size = hashlib.sha256(), 0

    @contextmanager
    def opened(self) -> Iterator[Callable[[bytes], None]]:
        """A function that appends; what lay behind the beginning is cut off first."""
        with self.path.open("r+b") as file:
            file.truncate(self.size)
            file.seek(self.size)

            def append(chunk: bytes) -> None:
                file.write(chunk)
                self._digest.update(chunk)
                self.size += len(chunk)

            yield append


@dataclass(frozen=True)
class Downloader:
    """Downloads files of one source into one folder. Safe to use from several threads, one file each."""

    source: Source
    folder: Path
    reporter: Reporter
    retry: RetryPolicy
    max_size: int  # bytes of one file
    stop: Event = field(default_factory=Event)

    def download(self, file: RemoteFile) -> LocalFile:
        """Fetch, verify, rename. Raises KvasirError; what was received stays for the next attempt if it may be good."""
        done = finished(self.folder, file)
        if done is not None:
            self.reporter.advance(done.size)
            return done
        try:
            part = self._receive(file)
            self._check_digest(file, part)
            return self._put_in_place(file, part)
        except OSError as error:
            raise disk_error(error, self.folder) from error

    def _receive(self, file: RemoteFile) -> Part:
        """A part that is the whole file, over as many connections as it takes."""
        part = Part(part_path(self.folder, file))
        if file.version is None or (file.size is not None and part.size > file.size):
            part.restart()
        self.reporter.advance(part.size)
        failures, ended = 0, False
        while not (ended if file.size is None else part.size == file.size):
            before = part.size
            try:
                self._stream(file, part)
                ended = True
            except TransientError as error:
                failures = 1 if part.size > before else failures + 1
                self.reporter.note(f"{file.name}: {error}; continuing at {format_bytes(part.size)}")
                self.retry.pause(failures, error, file.name)
        return part

    def _stream(self, file: RemoteFile, part: Part) -> None:
        """One connection's worth. Raises TransientError when it ends early."""
        stream = self.source.open(file, 0 if file.version is None else part.size)
        if stream.offset not in (0, part.size):
            raise TransientError(f"the source sent bytes from {stream.offset} on, asked for {part.size}")
        if stream.offset != part.size:
            self.reporter.advance(-part.size)
            part.restart()
        with closing(stream.chunks) as chunks, part.opened() as append:
            for chunk in chunks:
                append(chunk)
                self.reporter.advance(len(chunk))
                if self.stop.is_set():
                    raise Stopped
                self._check_size(file, part.size)
        if file.size is not None and part.size < file.size:
            raise TransientError(f"the connection ended after {part.size} of {file.size} bytes")

    def _check_size(self, file: RemoteFile, size: int) -> None:
        if file.size is not None and size > file.size:
            raise KvasirError(
                Cause.WEIGHTS_CORRUPT,
                f"{file.name} is longer than the {file.size} bytes that the source announced",
                "the file changed while it was read; start again",
            )
        if size > self.max_size:
            raise too_large(file.name, size, self.max_size)

    def _check_digest(self, file: RemoteFile, part: Part) -> None:
        if file.sha256 in (None, part.sha256):
            return
        part.path.unlink()
        self.reporter.advance(-part.size)
        raise KvasirError(
            Cause.WEIGHTS_CORRUPT,
            f"{file.name} has SHA-256 {part.sha256}, expected {file.sha256}",
            "the file at the source differs from its published checksum: upload it again, or correct the checksum",
        )

    def _put_in_place(self, file: RemoteFile, part: Part) -> LocalFile:
        final = self.folder / file.name
        final.parent.mkdir(parents=True, exist_ok=True)
        part.path.replace(final)
        record_path(part.path).write_text(json.dumps({"size": part.size, "sha256": part.sha256}))
        return LocalFile(file.name, part.size, part.sha256)


def part_path(folder: Path, file: RemoteFile) -> Path:
    """Where the unfinished file lies. Another size, digest or version is another file, so nothing is mixed up."""
    identity = hashlib.sha256(repr((file.size, file.sha256, file.version)).encode()).hexdigest()[:12]
    return folder / PARTIAL / f"{file.name}.{identity}"


def record_path(part: Path) -> Path:
    """Says, while the other files are still coming, that this one is whole and in its place."""
    return part.with_name(f"{part.name}.done")


def finished(folder: Path, file: RemoteFile) -> LocalFile | None:
    """The file, if an earlier attempt fetched exactly this version of it."""
    try:
        facts = json.loads(record_path(part_path(folder, file)).read_text())
        whole = (folder / file.name).stat().st_size == facts["size"]
    except (OSError, ValueError, KeyError):
        return None
    return LocalFile(file.name, facts["size"], facts["sha256"]) if whole else None


def bytes_present(folder: Path, file: RemoteFile) -> int:
    """How much of the file earlier attempts brought."""
    done = finished(folder, file)
    part = part_path(folder, file)
    return done.size if done else part.stat().st_size if part.exists() else 0


def hash_of(path: Path) -> tuple["hashlib._Hash", int]:
    """SHA-256 state and length of a file; of nothing when there is none."""
    digest, length = hashlib.sha256(), 0
    if path.exists():
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                length += len(chunk)
    return digest, length


def too_large(what: str, size: int, bound: int) -> KvasirError:
    return KvasirError(
        Cause.INVALID_ARGUMENTS,
        f"{what} has at least {size} bytes, more than the bound of {bound} bytes ({format_bytes(bound)})",
        "raise --max-size (KVASIR_FETCH_MAX_SIZE) if the model is meant to be this large",
    )


def disk_error(error: OSError, folder: Path) -> KvasirError:
    """What the disk refused, as a cause that a person can act on."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return KvasirError(
            Cause.DISK_FULL, f"the disk of {folder} is full: {error.strerror}", "give the volume more room"
        )
    return KvasirError(
        Cause.INVALID_ARGUMENTS,
        f"cannot write to {folder}: {error.strerror or error}",
        "mount a writable volume there, or set fsGroup so that the container's user may write",
    )
