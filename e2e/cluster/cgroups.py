"""The cluster's cgroup in every hierarchy: version 1, version 2 or both (hybrid)."""

import contextlib
import os
import time
from pathlib import Path

from e2e.cluster.errors import ClusterError

ROOT = Path("/sys/fs/cgroup")
WANTED = ("cpuset", "cpu", "io", "memory", "pids", "hugetlb")


def is_v2() -> bool:
    """Whether the machine uses the unified hierarchy alone."""
    return (ROOT / "cgroup.controllers").exists()


def hierarchies() -> list[Path]:
    """The mount points of all hierarchies; a version 1 link such as `cpu` -> `cpu,cpuacct` counts once."""
    if is_v2():
        return [ROOT]
    return sorted({entry.resolve() for entry in ROOT.iterdir() if (entry / "cgroup.procs").exists()})


def create(name: str) -> None:
    """Makes the cgroup everywhere; where controllers are handed down by hand (version 2), they are.

    Raises:
        ClusterError: the machine does not let us, as inside most containers.
    """
    try:
        _create(name)
    except OSError as error:
        raise ClusterError(f"cannot make the cgroup {name} (is this a container without its own?): {error}") from error


def _create(name: str) -> None:
    for hierarchy in hierarchies():
        folder = hierarchy / name
        folder.mkdir(exist_ok=True)
        if (hierarchy / "cgroup.subtree_control").exists():
            _hand_down(hierarchy)
            _hand_down(folder)
        (folder / "system").mkdir(exist_ok=True)
        _inherit_cpuset(folder)
        _inherit_cpuset(folder / "system")


def _hand_down(folder: Path) -> None:
    available = (folder / "cgroup.controllers").read_text().split()
    for controller in WANTED:
        if controller in available:
            (folder / "cgroup.subtree_control").write_text(f"+{controller}")


def _inherit_cpuset(folder: Path) -> None:
    for file in ("cpuset.cpus", "cpuset.mems"):
        if (folder / file).exists() and not (folder / "cgroup.controllers").exists():
            (folder / file).write_text((folder.parent / file).read_text())


def join(name: str, pid: int) -> None:
    """Moves a process, and so all that it will start, into the cgroup's `system` part."""
    for hierarchy in hierarchies():
        (hierarchy / name / "system" / "cgroup.procs").write_text(str(pid))


def folders(name: str) -> list[Path]:
    """Every cgroup of the cluster, deepest first."""
    tops = [hierarchy / name for hierarchy in hierarchies() if (hierarchy / name).exists()]
    found = [Path(path) for top in tops for path, _, _ in os.walk(top)]
    return sorted(found, key=lambda path: len(path.parts), reverse=True)


def members(name: str) -> set[int]:
    """The processes in any cgroup of the cluster: of components and of pods."""
    pids: set[int] = set()
    for folder in folders(name):
        with contextlib.suppress(OSError):  # the cgroup went between listing and reading
            pids.update(int(pid) for pid in (folder / "cgroup.procs").read_text().split())
    return pids


def remove(name: str, timeout: float = 10.0) -> None:
    """Removes the cluster's cgroups; they are busy until the kernel has buried their last process.

    Raises:
        ClusterError: some could not be removed in `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while remaining := folders(name):
        for folder in remaining:
            with contextlib.suppress(OSError):  # busy: tried again until the deadline
                folder.rmdir()
        if time.monotonic() > deadline:
            raise ClusterError(f"cgroups still in use: {', '.join(map(str, remaining))}; processes {members(name)}")
        if folders(name):
            time.sleep(0.05)
