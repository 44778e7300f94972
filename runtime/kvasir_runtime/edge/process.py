"""Facts and limits of this operating system process."""

import os
import resource
import time
from pathlib import Path


def process_started() -> float:
    """When this process began, on the clock of `time.monotonic()`; now where /proc does not tell."""
    try:
        # Field 22 counts from boot in clock ticks; the command in field 2 may hold spaces, so count behind it.
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.monotonic() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot)
    except (OSError, ValueError, AttributeError):
        return time.monotonic()


def raise_open_files_limit() -> None:
    """Take all the file descriptors the system grants: every client is one, and 1,024 is a common default."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
