"""What the figures were measured on."""

import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TELLING_FLAGS: Final = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8")
"""CPU flags that decide how fast 16-bit and 8-bit arithmetic is."""


@dataclass(frozen=True)
class Hardware:
    model: str
    family: str
    cores: int
    memory_gib: float
    last_cache: str
    flags: tuple[str, ...]
    kernel: str

    @property
    def zen(self) -> bool:
        """Whether vLLM would take AMD's own kernels here: an AMD CPU with AVX-512."""
        return self.model.startswith("AMD") and "avx512f" in self.flags

    @property
    def slug(self) -> str:
        """For a file's name: `amd-epyc-2c`."""
        name = re.sub(r"\(.*?\)|\b(cpu|processor)\b|@.*|\d+-core", "", self.model.lower())
        return re.sub(r"[^a-z0-9]+", "-", name).strip("-") + f"-{self.cores}c"

    def describe(self) -> str:
        return (
            f"{self.model} ({self.family}), {self.cores} cores, {self.memory_gib:.0f} GiB memory, "
            f"last-level cache {self.last_cache}, {' '.join(self.flags)}, Linux {self.kernel}"
        )


def read_hardware() -> Hardware:
    return parse_hardware(
        Path("/proc/cpuinfo").read_text(encoding="utf-8"),
        Path("/proc/meminfo").read_text(encoding="utf-8"),
        last_cache=last_cache(Path("/sys/devices/system/cpu/cpu0/cache")),
        cores=len(os.sched_getaffinity(0)),
        kernel=platform.release(),
    )


def last_cache(folder: Path) -> str:
    """Size of the cache of the highest level, as sysfs writes it: `32768K`."""
    levels = {int((index / "level").read_text()): index for index in folder.glob("index*")}
    return (levels[max(levels)] / "size").read_text().strip() if levels else "unknown"


def parse_hardware(cpuinfo: str, meminfo: str, last_cache: str, cores: int, kernel: str) -> Hardware:
    """Read the text of /proc/cpuinfo and /proc/meminfo; what a machine does not say becomes `unknown`."""
    fields = dict(re.findall(r"^([\w ]+?)\s*:\s*(.*)$", cpuinfo.partition("\n\n")[0], re.MULTILINE))
    memory = re.search(r"MemTotal:\s*(\d+) kB", meminfo)
    present = set(fields.get("flags", "").split())
    return Hardware(
        model=fields.get("model name", "unknown"),
        family=f"family {fields.get('cpu family', 'unknown')} model {fields.get('model', 'unknown')}",
        cores=cores,
        memory_gib=int(memory[1]) / 2**20 if memory else float("nan"),
        last_cache=last_cache,
        flags=tuple(flag for flag in TELLING_FLAGS if flag in present),
        kernel=kernel,
    )


def commit(repository: Path) -> str:
    """Short hash of the checked-out commit, marked when files differ from it; `unknown` outside a repository."""
    try:
        head = _git(repository, "rev-parse", "--short=10", "HEAD")
        changed = _git(repository, "status", "--porcelain", "--untracked-files=no", "--", "runtime")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head} with changes" if changed else head


def _git(repository: Path, *arguments: str) -> str:
    command = ["git", "-C", str(repository), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
