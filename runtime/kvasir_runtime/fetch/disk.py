"""Room on the disk, asked for beforehand."""

import shutil
from collections.abc import Callable
from pathlib import Path

from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.contract.quantities import format_bytes

MARGIN = 16 << 20
"""Bytes that stay free: file systems slow down or fail when the last block is taken."""


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def require_room(folder: Path, needed: int, free: Callable[[Path], int] = free_bytes) -> None:
    """Raise KvasirError (DiskFull) with both numbers when `needed` more bytes do not fit."""
    has = free(folder)
    if needed + MARGIN > has:
        raise KvasirError(
            Cause.DISK_FULL,
            f"{folder} needs {format_bytes(needed)} ({needed} bytes) more, has {format_bytes(has)} free ({has} bytes)",
            "give the volume more room (an emptyDir's sizeLimit, a larger claim) or serve a smaller model",
            needed=needed,
            free=has,
        )
