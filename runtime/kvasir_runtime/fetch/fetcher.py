"""The whole fetch: list, make sure of room, download, verify, and say that it is complete."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event

from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.contract.quantities import format_bytes
from kvasir_runtime.fetch import names
from kvasir_runtime.fetch.archive import unpack
from kvasir_runtime.fetch.disk import require_room
from kvasir_runtime.fetch.download import PARTIAL, Downloader, LocalFile, bytes_present, disk_error, too_large
from kvasir_runtime.fetch.file_source import FileSource
from kvasir_runtime.fetch.marker import Complete, read_marker, remove_stale, write_marker
from kvasir_runtime.fetch.progress import Reporter
from kvasir_runtime.fetch.retry import RetryPolicy, Stopped
from kvasir_runtime.fetch.source import Access, RemoteFile, Source
from kvasir_runtime.fetch.uri import (
    Address,
    FileAddress,
    HttpAddress,
    HubAddress,
    S3Address,
    parse_uri,
    without_credentials,
)
from kvasir_runtime.fetch.verify import verify_folder

LOCK = ".lock"


@dataclass(frozen=True)
class Request:
    """What is to be fetched, where to, and within which bounds. Serves one fetch: a failure sets `stop`."""

    uri: str
    folder: Path
    sha256: str | None = None
    max_size: int = 2 << 40  # bytes in all
    workers: int = 4  # files at the same time
    access: Access = field(default_factory=Access)
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    stop: Event = field(default_factory=Event)


def fetch(request: Request, reporter: Reporter) -> Complete:
    """Make `request.folder` hold the model; returns at once when it already does. Raises KvasirError."""
    address = parse_uri(request.uri)
    _make_folder(request.folder)
    with _locked(request, reporter):
        before = read_marker(request.folder)
        if before is not None and before.satisfies(without_credentials(request.uri), request.sha256):
            reporter.note(f"{request.folder} is complete: {len(before.files)} files, {format_bytes(before.size)}")
            return before
        try:
            return _fetch(request, address, before, reporter)
        except OSError as error:
            raise disk_error(error, request.folder) from error


def open_source(address: Address, access: Access) -> Source:
    """The source behind an address; its libraries are only imported when it is used."""
    match address:
        case HttpAddress():
            from kvasir_runtime.fetch.http_source import HttpSource  # noqa: PLC0415 - see above

            return HttpSource(address, access)
        case S3Address():
            from kvasir_runtime.fetch.s3_source import S3Source  # noqa: PLC0415 - see above

            return S3Source(address, access)
        case HubAddress():
            from kvasir_runtime.fetch.hub_source import HubSource  # noqa: PLC0415 - see above

            return HubSource(address, access)
        case FileAddress():
            return FileSource(address)


def check_listing(files: list[RemoteFile], request: Request) -> None:
    """Raise KvasirError when the listing holds nothing, too much, or more than the disk has room for."""
    if not files:
        raise KvasirError(
            Cause.MODEL_NOT_FOUND,
            f"{without_credentials(request.uri)} holds no file of a model ({', '.join(names.ALLOWED)})",
            "the URI must name the folder that holds config.json",
        )
    known = sum(file.size or 0 for file in files)
    if known > request.max_size:
        raise too_large("the model", known, request.max_size)
    require_room(request.folder, known - sum(bytes_present(request.folder, file) for file in files))


def _fetch(request: Request, address: Address, before: Complete | None, reporter: Reporter) -> Complete:
    is_archive = isinstance(address, HttpAddress) and address.is_archive
    with closing(open_source(address, request.access)) as source:
        local = _download(request, source, before, reporter, is_archive=is_archive)
    try:
        complete = _verified(request, local, reporter, is_archive=is_archive)
    except KvasirError:
        shutil.rmtree(request.folder / PARTIAL, ignore_errors=True)  # what is wrong is not to be continued
        raise
    _flush(request.folder, complete)
    write_marker(request.folder, complete)
    shutil.rmtree(request.folder / PARTIAL, ignore_errors=True)
    return complete


def _download(
    request: Request, source: Source, before: Complete | None, reporter: Reporter, *, is_archive: bool
) -> list[LocalFile]:
    """List, check, download; an archive is put aside for unpacking."""
    files = request.retry.call(source.list_files, without_credentials(request.uri))
    folder = request.folder / PARTIAL if is_archive else request.folder
    folder.mkdir(exist_ok=True)
    check_listing(files, replace(request, folder=folder))
    sizes = [file.size for file in files]
    reporter.start(len(files), None if None in sizes else sum(size or 0 for size in sizes))
    remove_stale(request.folder, before, [] if is_archive else [file.name for file in files])
    downloader = Downloader(source, folder, reporter, request.retry, request.max_size, request.stop)
    return _download_all(downloader, files, request)


def _verified(request: Request, local: list[LocalFile], reporter: Reporter, *, is_archive: bool) -> Complete:
    """Unpack, look into the files, compare the digest."""
    uri = without_credentials(request.uri)
    complete = Complete(uri, tuple(local))
    if is_archive:
        _check_digest(request, local[0].sha256)
        reporter.note(f"unpacking {local[0].name}")
        unpacked = unpack(request.folder / PARTIAL / local[0].name, request.folder, request.max_size)
        complete = Complete(uri, tuple(unpacked), local[0].sha256)
    verify_folder(request.folder, [file.name for file in complete.files])
    _check_digest(request, complete.archive_sha256 or complete.digest)
    return complete


def _check_digest(request: Request, found: str) -> None:
    if request.sha256 not in (None, found):
        raise KvasirError(
            Cause.WEIGHTS_CORRUPT,
            f"{without_credentials(request.uri)} has SHA-256 {found}, expected {request.sha256}",
            "the source holds another model than the one named: correct the checksum or the URI",
        )


def _download_all(downloader: Downloader, files: list[RemoteFile], request: Request) -> list[LocalFile]:
    """All files, a few at a time; the first error ends the others."""
    with ThreadPoolExecutor(request.workers) as pool:
        jobs = [pool.submit(downloader.download, file) for file in files]
        done, pending = wait(jobs, return_when=FIRST_EXCEPTION)
        if pending:
            request.stop.set()
            for job in pending:
                job.cancel()
        failures = [error for job in done if (error := job.exception()) is not None]
    for failure in sorted(failures, key=lambda error: isinstance(error, Stopped)):
        raise failure
    return [job.result() for job in jobs]


def _flush(folder: Path, complete: Complete) -> None:
    """Bytes before marker: after a power loss the marker must not vouch for what is not on the disk."""
    for file in complete.files:
        descriptor = os.open(folder / file.name, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, folder) from error


@contextmanager
def _locked(request: Request, reporter: Reporter) -> Iterator[None]:
    """One fetch a folder at a time: pods that share a claim wait for the first, then find the folder complete."""
    try:
        file = (request.folder / LOCK).open("w")
    except OSError as error:
        raise disk_error(error, request.folder) from error
    with file:
        told = False
        while not _try_lock(file.fileno()):
            if not told:
                reporter.note(f"another process fetches into {request.folder}; waiting for it")
                told = True
            if request.stop.wait(1.0):
                raise Stopped
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
