"""A folder of this machine, copied."""

from collections.abc import Generator
from pathlib import Path

from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.fetch import names
from kvasir_runtime.fetch.source import CHUNK, RemoteFile, Stream, not_found
from kvasir_runtime.fetch.uri import FileAddress


class FileSource:
    """The wanted files of a folder and of the folders below it."""

    def __init__(self, address: FileAddress) -> None:
        self._folder = address.path

    def list_files(self) -> list[RemoteFile]:
        if not self._folder.is_dir():
            raise not_found(f"{self._folder} is no folder of this machine", "mount the volume there")
        found = sorted(path.relative_to(self._folder).as_posix() for path in self._folder.rglob("*") if path.is_file())
        checksums = self._checksums()
        return [self._describe(name, checksums.get(name)) for name in found if names.is_wanted(name)]

    def open(self, file: RemoteFile, offset: int) -> Stream:
        return Stream(offset, _read(self._folder / file.name, offset))

    def close(self) -> None:
        """Nothing stays open."""

    def _describe(self, name: str, sha256: str | None) -> RemoteFile:
        status = (self._folder / name).stat()
        return RemoteFile(name, status.st_size, sha256, str(status.st_mtime_ns))

    def _checksums(self) -> dict[str, str]:
        listing = self._folder / names.CHECKSUMS
        return names.parse_checksums(listing.read_text("utf-8", "replace")) if listing.is_file() else {}


def _read(path: Path, offset: int) -> Generator[bytes]:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            while chunk := file.read(CHUNK):
                yield chunk
    except PermissionError as error:
        raise KvasirError(
            Cause.SOURCE_FORBIDDEN, f"cannot read {path}: {error.strerror}", "let the container's user read it"
        ) from error
