"""Finds and ends the cluster's processes, without ever touching another's.

Every process that `up` starts carries KVASIR_CLUSTER_STATE in its environment, so a process is known by what the kernel
says about it now, not by a number in a file that may be somebody else's since. It is ended through a pidfd that is
opened before the environment is read again: a recycled pid can never be hit.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.errors import ClusterError

MARK = "KVASIR_CLUSTER_STATE"
COMPONENT = "KVASIR_CLUSTER_COMPONENT"
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    """A process of the cluster, as the machine numbers it."""

    pid: int
    parent: int
    component: str
    started: float  # seconds since boot
    rss: int  # bytes


def marks(state: Path, component: str) -> dict[str, str]:
    """The environment that marks a process as ours."""
    return {MARK: str(state), COMPONENT: component}


def clean_environment(state: Path, component: str, path: str) -> dict[str, str]:
    """What a component sees: our mark and PATH, and nothing of the user's shell (no proxies, no KUBECONFIG)."""
    return {"PATH": path, "HOME": "/root", "LANG": "C.UTF-8", **marks(state, component)}


def cluster_processes(state: Path) -> list[Process]:
    """Every living process that carries the cluster's mark, oldest first."""
    found = [_describe(pid, environment) for pid, environment in _environments() if environment.get(MARK) == str(state)]
    return sorted((process for process in found if process), key=lambda process: (process.started, process.pid))


def _environments() -> Iterator[tuple[int, dict[str, str]]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            yield int(entry.name), _environment(int(entry.name))


def _environment(pid: int) -> dict[str, str]:
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:  # ended meanwhile, or a kernel thread
        return {}
    return dict(item.split("=", 1) for item in raw.split("\0") if "=" in item)


def _describe(pid: int, environment: dict[str, str]) -> Process | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    if fields[0] in "ZX":
        return None
    rss = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    return Process(pid, int(fields[1]), environment.get(COMPONENT, "?"), int(fields[19]) / TICKS, rss)


def components(processes: list[Process]) -> dict[str, Process]:
    """The process of each component: the oldest with its mark (its own children inherit the mark)."""
    first: dict[str, Process] = {}
    for process in processes:
        first.setdefault(process.component, process)
    return first


def end_all(state: Path, timeout: float = 20.0) -> int:
    """Kills every process of the cluster and returns how many there were.

    Raises:
        ClusterError: some are still there after `timeout` seconds; names them.
    """
    ended: set[int] = set()
    deadline = time.monotonic() + timeout
    while processes := cluster_processes(state):
        if time.monotonic() > deadline:
            names = ", ".join(f"{process.component} ({process.pid})" for process in processes)
            raise ClusterError(f"still running {timeout:.0f} s after SIGKILL: {names}")
        for process in processes:
            _kill(process.pid, state)
            ended.add(process.pid)
        time.sleep(0.05)
    return len(ended)


def _kill(pid: int, state: Path) -> None:
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        try:
            if _environment(pid).get(MARK) == str(state):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)


def uptime() -> float:
    """Seconds since boot."""
    return float(Path("/proc/uptime").read_text().split()[0])
