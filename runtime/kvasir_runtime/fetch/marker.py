"""`.complete`: says that a folder holds a whole, verified model, and which."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvasir_runtime.fetch.download import LocalFile

MARKER = ".complete"


@dataclass(frozen=True)
class Complete:
    """The marker's content. `archive_sha256` is set when the files came out of an archive."""

    uri: str
    files: tuple[LocalFile, ...]
    archive_sha256: str | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the listing that `sha256sum` prints for the files, sorted by name."""
        listing = "".join(f"{file.sha256}  {file.name}\n" for file in sorted(self.files, key=lambda file: file.name))
        return hashlib.sha256(listing.encode()).hexdigest()

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    def satisfies(self, uri: str, sha256: str | None) -> bool:
        return self.uri == uri and sha256 in (None, self.archive_sha256 or self.digest)


def write_marker(folder: Path, complete: Complete) -> None:
    """Write the marker atomically and durably; before it, the files themselves are flushed by the caller."""
    files = {file.name: {"size": file.size, "sha256": file.sha256} for file in complete.files}
    content = {
        "uri": complete.uri,
        "digest": complete.digest,
        "archive_sha256": complete.archive_sha256,
        "files": files,
    }
    draft = folder / f"{MARKER}.new"
    with draft.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(folder / MARKER)


def read_marker(folder: Path) -> Complete | None:
    """The marker, if every file it names is there in its size; None when there is none or it no longer holds."""
    try:
        content = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        files = tuple(LocalFile(name, **facts) for name, facts in content["files"].items())
        complete = Complete(content["uri"], files, content["archive_sha256"])
        held = all((folder / file.name).stat().st_size == file.size for file in files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return complete if held and complete.digest == content["digest"] else None


def remove_stale(folder: Path, before: Complete | None, names: Sequence[str]) -> None:
    """Remove files of an earlier model that the new one does not have; files of others are left alone."""
    (folder / MARKER).unlink(missing_ok=True)
    for file in before.files if before else ():
        if file.name not in names:
            (folder / file.name).unlink(missing_ok=True)
