"""What this process may use of the machine: memory and CPUs, as limited by its cgroup (v1 or v2)."""

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_ROOT: Final = Path("/sys/fs/cgroup")
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_KEPT_BYTES: Final = 1 << 30
_NO_LIMIT: Final = 1 << 60
"""cgroup v1 writes a number near 2^63 for "no limit"."""


@dataclass(frozen=True)
class HostMemory:
    """Bytes this process may use; `limited` when a cgroup says so and not just the machine's size."""

    limit: int
    limited: bool


def memory_limit(root: Path = _ROOT, total: int | None = None) -> HostMemory:
    """The smallest of the cgroup's limits and the machine's memory."""
    machine = total if total is not None else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = [value for path in _memory_files(root) if (value := _read_number(path)) is not None and value < _NO_LIMIT]
    limit = min(found, default=machine)
    return HostMemory(min(limit, machine), limited=limit < machine)


def cpu_count(root: Path = _ROOT) -> int:
    """CPUs to compute with: those of the affinity mask, at most the cgroup's quota (rounded down, at least 1)."""
    cpus = len(os.sched_getaffinity(0))
    quota = _cpu_quota(root)
    return cpus if quota is None else max(1, min(cpus, int(quota)))


def keep_freed_memory() -> None:
    """Tell the C library to keep what tensors free for the next ones, up to the peak of what was in use.

    By default it maps a large tensor anew each time, and the kernel zeroes its pages: with that, a product whose result
    takes 23 MB took 63 ms in place of 57. Does nothing where the C library has no `mallopt`.
    Source: glibc's manual, "Malloc Tunable Parameters".
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            mallopt(parameter, _KEPT_BYTES)


def _memory_files(root: Path) -> list[Path]:
    own = _own_groups()
    files = [root / "memory.max", root / "memory" / "memory.limit_in_bytes"]
    if "" in own:
        files.append(root / own[""] / "memory.max")
    if "memory" in own:
        files.append(root / "memory" / own["memory"] / "memory.limit_in_bytes")
    return files


def _own_groups() -> dict[str, str]:
    """This process's group by controller; "" for cgroup v2."""
    path = Path("/proc/self/cgroup")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    parts = [line.split(":", 2) for line in lines]
    return {controller: part[2].lstrip("/") for part in parts for controller in part[1].split(",")}


def _cpu_quota(root: Path) -> float | None:
    own = _own_groups()
    for folder in (root, root / own.get("", "")):
        path = folder / "cpu.max"
        if path.is_file():
            quota, period = path.read_text(encoding="utf-8").split()
            if quota != "max":
                return int(quota) / int(period)
    for folder in (root / "cpu", root / "cpu" / own.get("cpu", "")):
        quota_us, period_us = _read_number(folder / "cpu.cfs_quota_us"), _read_number(folder / "cpu.cfs_period_us")
        if quota_us is not None and period_us and quota_us > 0:
            return quota_us / period_us
    return None


def _read_number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # absent, or "max": no limit
        return None
