"""Runs one program at a time, and says how much of the machine others used meanwhile."""

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.peers.errors import BenchmarkError

PROC_STAT: Final = Path("/proc/stat")
IDLE_FIELDS: Final = (3, 4)
"""`idle` and `iowait` among the columns of /proc/stat."""
STEAL_FIELD: Final = 7
GRACE_S: Final = 20.0
PR_SET_CHILD_SUBREAPER: Final = 36
"""From <linux/prctl.h>."""


@dataclass(frozen=True)
class Finished:
    """A program that ended well. `foreign_cpu` is the share of all cores that it did not get, though they were busy."""

    stdout: str
    wall_s: float
    foreign_cpu: float


def run(command: Sequence[str], variables: Mapping[str, str], log: Path, timeout_s: float) -> Finished:
    """Run to the end; standard error goes to `log`. Raises BenchmarkError on failure, with the log's end."""
    start, busy, own = time.monotonic(), busy_cpu_s(PROC_STAT.read_text()), _children_cpu_s()
    with log.open("w", encoding="utf-8") as errors:
        # A session of its own: engines start processes, and all of them must end with it.
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, env=dict(variables), text=True, start_new_session=True
        )
        try:
            stdout, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise BenchmarkError(_failure(command, f"ran longer than {timeout_s:.0f} s", log)) from None
        finally:
            end_session(process)
            if process.stdout:
                process.stdout.close()
    if process.returncode:
        raise BenchmarkError(_failure(command, f"failed with status {process.returncode}", log))
    wall_s = time.monotonic() - start
    foreign_s = busy_cpu_s(PROC_STAT.read_text()) - busy - (_children_cpu_s() - own)
    return Finished(stdout, wall_s, min(1.0, max(0.0, foreign_s / (wall_s * (os.cpu_count() or 1)))))


def busy_cpu_s(proc_stat: str) -> float:
    """Seconds that all cores have been busy since boot, time stolen by the hypervisor included."""
    columns = [int(column) for column in proc_stat.partition("\n")[0].split()[1 : STEAL_FIELD + 2]]
    busy = sum(columns) - sum(columns[index] for index in IDLE_FIELDS)
    return busy / os.sysconf("SC_CLK_TCK")


def end_session(process: "subprocess.Popen[str]") -> None:
    """End what is left of a program's session: politely, then for good."""
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        if not _session_lives(process):
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal_number)
        deadline = time.monotonic() + GRACE_S
        while _session_lives(process) and time.monotonic() < deadline:
            time.sleep(0.1)


def adopt_orphans() -> None:
    """Become the parent of what engines leave behind, so that its CPU time is known; Linux only, once a process."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def _reap(group: int) -> None:
    """Take in the CPU time of every ended process of the group that is ours to wait for."""
    try:
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _session_lives(process: "subprocess.Popen[str]") -> bool:
    process.poll()
    _reap(process.pid)
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _failure(command: Sequence[str], what: str, log: Path) -> str:
    last_words = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
    return f"{' '.join(command)} {what}; its whole log is {log}\n{last_words}"
