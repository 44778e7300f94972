"""Archives: only plain files with safe, wanted names leave them, and never more bytes than allowed."""

import hashlib
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.fetch import names
from kvasir_runtime.fetch.disk import require_room
from kvasir_runtime.fetch.download import PARTIAL, LocalFile, too_large
from kvasir_runtime.fetch.source import CHUNK


@dataclass(frozen=True)
class Member:
    """One regular file of an archive."""

    name: str
    size: int


def unpack(archive: Path, folder: Path, max_size: int) -> list[LocalFile]:
    """Unpack the wanted files; a single folder around them all is left out.

    Raises KvasirError: ModelInvalid for names that leave the folder and for archives that cannot be read, and when
    more than `max_size` bytes would come out.
    """
    try:
        with _opened(archive) as members:
            return _unpack(members, folder, max_size)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise KvasirError(Cause.MODEL_INVALID, f"{archive.name} cannot be unpacked: {error}", "make it anew") from error


def _unpack(members: "Opened", folder: Path, max_size: int) -> list[LocalFile]:
    listed = members.members()
    for member in listed:
        if names.is_safe(member.name) or _hidden(member.name):
            continue
        raise KvasirError(
            Cause.MODEL_INVALID,
            f"the archive holds {member.name!r}, a name that leaves its folder",
            "do not use this archive: it was made to write elsewhere",
        )
    root = common_root([member.name for member in listed])
    wanted = [member for member in listed if names.is_wanted(member.name.removeprefix(root))]
    total = sum(member.size for member in wanted)
    if total > max_size:
        raise too_large("the unpacked archive", total, max_size)
    require_room(folder, total)
    return [_write(members, member, folder, member.name.removeprefix(root)) for member in wanted]


def _write(members: "Opened", member: Member, folder: Path, name: str) -> LocalFile:
    part, final = folder / PARTIAL / f"{name}.unpacked", folder / name
    part.parent.mkdir(parents=True, exist_ok=True)
    final.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with members.open(member.name) as source, part.open("wb") as out:
        while chunk := source.read(CHUNK):
            size += len(chunk)
            if size > member.size:  # a header that lies about its size
                raise too_large(name, size, member.size)
            digest.update(chunk)
            out.write(chunk)
    part.replace(final)
    return LocalFile(name, size, digest.hexdigest())


def common_root(found: list[str]) -> str:
    """The folder, with its slash, that holds everything; "" when config.json lies at the top.

    >>> common_root(["llama/config.json", "llama/model.safetensors"]), common_root(["config.json", "a/b.json"])
    ('llama/', '')
    """
    tops = {name.partition("/")[0] for name in found if not _hidden(name)}
    nested = all("/" in name for name in found if not _hidden(name))
    return f"{tops.pop()}/" if len(tops) == 1 and nested else ""


def _hidden(name: str) -> bool:
    """Names such as `._config.json` and `.git/HEAD`: harmless, and never wanted."""
    parts = name.split("/")
    return any(part.startswith(".") for part in parts) and not {"", "..", "."} & set(parts)


class Opened:
    """A tar or zip archive, seen alike. Regular files only: links, devices and folders are left out."""

    def __init__(self, file: tarfile.TarFile | zipfile.ZipFile) -> None:
        self._tar = file if isinstance(file, tarfile.TarFile) else None
        self._zip = file if isinstance(file, zipfile.ZipFile) else None
        tar_infos = [info for info in self._tar or [] if info.isreg()]
        zip_infos = [info for info in (self._zip.infolist() if self._zip else []) if not info.is_dir()]
        self._sizes = {_plain(info.name): info.size for info in tar_infos}
        self._sizes |= {_plain(info.filename): info.file_size for info in zip_infos}
        self._tar_infos = {_plain(info.name): info for info in tar_infos}
        self._zip_infos = {_plain(info.filename): info for info in zip_infos}

    def members(self) -> list[Member]:
        return [Member(name, size) for name, size in self._sizes.items()]

    def open(self, name: str) -> IO[bytes]:
        if self._zip is not None:
            return self._zip.open(self._zip_infos[name])
        assert self._tar is not None
        found = self._tar.extractfile(self._tar_infos[name])
        assert found is not None
        return found


def _plain(name: str) -> str:
    return name.removeprefix("./")


@contextmanager
def _opened(archive: Path) -> Iterator[Opened]:
    kind = zipfile.ZipFile if zipfile.is_zipfile(archive) else tarfile.open
    with kind(archive) as file:
        yield Opened(file)
