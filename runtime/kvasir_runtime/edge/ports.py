"""Listening sockets, opened before anything slow starts, and who holds a port that is taken."""

import errno
import socket
from pathlib import Path
from typing import Final

from kvasir_runtime.contract.failures import Cause, KvasirError

BACKLOG: Final = 2048
_LISTENING: Final = "0A"


def listen(host: str, port: int, flag: str) -> socket.socket:
    """Open a listening socket; raises KvasirError(PortInUse) that names the holder, or (InvalidArguments).

    It listens from here on: on Linux two sockets that are only bound could share a port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            holder = describe_holder(port)
            msg = f"port {port} ({flag}) is in use{f' by {holder}' if holder else ''}"
            raise KvasirError(Cause.PORT_IN_USE, msg, f"stop it, or choose another {flag}", port=port) from None
        msg = f"cannot listen on {host} port {port} ({flag}): {error.strerror or error}"
        raise KvasirError(Cause.INVALID_ARGUMENTS, msg, f"change --host or {flag}") from None


def describe_holder(port: int) -> str | None:
    """`process 4242 (python -m http.server)`; None where /proc does not tell."""
    inodes = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for folder in Path("/proc").glob("[0-9]*"):
        if inodes & _open_files(folder / "fd"):
            return f"process {folder.name} ({_command(folder)})"
    return None


def _listening_inodes(port: int) -> list[str]:
    inodes: list[str] = []
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        rows = table.read_text(encoding="ascii").splitlines()[1:] if table.exists() else []
        inodes += [
            columns[9]
            for columns in map(str.split, rows)
            if columns[3] == _LISTENING and int(columns[1].rpartition(":")[2], 16) == port
        ]
    return inodes


def _command(folder: Path) -> str:
    try:
        return (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:80]
    except OSError:
        return "ended meanwhile"


def _open_files(folder: Path) -> set[str]:
    try:
        return {str(entry.readlink()) for entry in folder.iterdir()}
    except OSError:  # another user's process, or one that has ended meanwhile
        return set()
