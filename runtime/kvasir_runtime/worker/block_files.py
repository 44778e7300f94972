"""Files of KV blocks: content-addressed, checksummed, written whole or not at all. Standard library only.

    FOLDER/kvasir-kv/<format>/<first two digits>/<hash of the block>.kv

`<format>` is a digest of all that decides whether the bytes mean anything to an engine: model, types, layout. A file
says it all once more in its header (JSON, padded to a page), with a checksum of the keys and values that follow it.
What does not fit, or is damaged, is not used. There is no fsync: after a crash of the machine a file may be damaged,
which its checksum tells. Files and folders are their owner's alone, since keys and values tell of prompts.
"""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from kvasir_runtime.core.kv_tiers import Outcome

HEADER_BYTES: Final = 4096
FOLDER: Final = "kvasir-kv"
_REVISION: Final = 1
"""Of the file's own form."""
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class BlockFormat:
    """Whose blocks these are, and how their bytes are to be read; another version may compute or arrange them anew."""

    version: str
    model_digest: str
    quantization: str
    dtype: str
    layout: str
    """Numbers of layers, keys and values, KV heads, tokens and head dimension, whose arrangement of a head it is."""

    def digest(self) -> str:
        text = json.dumps([_REVISION, asdict(self)], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Found:
    """What a folder holds, oldest first: our blocks by hash; files of others, and damaged ones, by path with bytes."""

    own: list[bytes]
    foreign: list[tuple[str, int]]
    corrupt: int

    @property
    def num_foreign(self) -> int:
        return len(self.foreign) - self.corrupt


class BlockFiles:
    """The files of one format. Methods may be called by several threads, on different blocks."""

    def __init__(self, folder: Path, block_format: BlockFormat, block_bytes: int) -> None:
        """Make the folder, if need be; raises OSError."""
        self._format = block_format
        self._block_bytes = block_bytes
        self._root = folder / FOLDER
        self._own = self._root / block_format.digest()
        self._numbers = itertools.count()
        self.error = ""
        """What the volume said last."""
        self._own.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def file_bytes(self) -> int:
        return HEADER_BYTES + self._block_bytes

    def scan(self) -> Found:
        """Look at names and sizes of all files, not into them; raises OSError."""
        own: list[tuple[float, bytes]] = []
        foreign: list[tuple[float, str, int]] = []
        corrupt = 0
        for path, status in _walk(self._root):
            block_hash = self._hash_of(path)
            if block_hash is not None and status.st_size == self.file_bytes:
                own.append((status.st_mtime, block_hash))
                continue
            corrupt += block_hash is not None
            foreign.append((status.st_mtime, str(path), status.st_size))
        return Found(
            own=[block_hash for _, block_hash in sorted(own)],
            foreign=[(path, size) for _, path, size in sorted(foreign)],
            corrupt=corrupt,
        )

    def write(self, block_hash: bytes, adapter_digest: str, content: memoryview) -> Outcome:
        """Write a block; afterwards its file is there whole, or not at all."""
        path = self._path(block_hash)
        draft = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}-{next(self._numbers)}")
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(self._header(block_hash, adapter_digest, content))
                file.write(content)
            draft.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
            self.error = str(error)
            return "full" if error.errno in _FULL else "failed"
        return "done"

    def read(self, block_hash: bytes, adapter_digest: str, content: memoryview) -> Outcome:
        """Fill `content` with a block. Unless the answer is `done` its bytes mean nothing."""
        path = self._path(block_hash)
        try:
            with path.open("rb") as file:
                header = _read_header(file.read(HEADER_BYTES))
                if header is None:
                    return "corrupt"
                if any(header.get(name) != value for name, value in self._identity(block_hash, adapter_digest).items()):
                    return "foreign"
                if file.readinto(content) != len(content) or header.get("checksum") != _checksum(content):
                    return "corrupt"
            os.utime(path)
        except FileNotFoundError:
            return "missing"
        except OSError as error:
            self.error = str(error)
            return "failed"
        return "done"

    def remove(self, name: bytes | str) -> Outcome:
        """Remove one of our files by its block's hash, or any by its path; one that is gone already is as good."""
        path = self._path(name) if isinstance(name, bytes) else Path(name)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self.error = str(error)
            return "failed"
        return "done"

    def _path(self, block_hash: bytes) -> Path:
        digits = block_hash.hex()
        return self._own / digits[:2] / f"{digits}.kv"

    def _hash_of(self, path: Path) -> bytes | None:
        """The block whose file this is by its name; None: it is none of ours."""
        try:
            block_hash = bytes.fromhex(path.stem)
        except ValueError:
            return None
        return block_hash if path == self._path(block_hash) else None

    def _identity(self, block_hash: bytes, adapter_digest: str) -> dict[str, Any]:
        return {
            "revision": _REVISION,
            **asdict(self._format),
            "adapter_digest": adapter_digest,
            "block": block_hash.hex(),
            "bytes": self._block_bytes,
        }

    def _header(self, block_hash: bytes, adapter_digest: str, content: memoryview) -> bytes:
        values = self._identity(block_hash, adapter_digest) | {"checksum": _checksum(content)}
        header = json.dumps(values).encode() + b"\n"
        assert len(header) <= HEADER_BYTES, len(header)
        return header.ljust(HEADER_BYTES, b"\0")


def _checksum(content: memoryview) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _read_header(data: bytes) -> dict[str, Any] | None:
    try:
        header = json.loads(data.rstrip(b"\0"))
    except ValueError:
        return None
    return header if isinstance(header, dict) else None


def _walk(root: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            with contextlib.suppress(FileNotFoundError):  # another replica has just renamed or removed it
                yield path, path.lstat()
