"""Looks for anything that a cluster has left on the machine. `down` cleans with the same eyes that it checks with."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from e2e.cluster import cgroups, network, packages, processes
from e2e.cluster.errors import ClusterError
from e2e.cluster.layout import NODE_FOLDERS, Addresses, Layout
from e2e.cluster.record import read_record

MOUNTS = Path("/proc/self/mountinfo")


def leftovers(layout: Layout) -> list[str]:
    """What is left of the cluster, one line each; empty when the machine is as before `up`."""
    return [line for look in (_processes, _cgroups, _network, _mounts, _folders) for line in look(layout)]


def _processes(layout: Layout) -> Iterator[str]:
    for process in processes.cluster_processes(layout.state):
        yield f"process {process.pid} ({process.component})"
    for pid in sorted(cgroups.members(layout.cgroup)):
        yield f"process {pid} in cgroup {layout.cgroup}"


def _cgroups(layout: Layout) -> Iterator[str]:
    for folder in cgroups.folders(layout.cgroup):
        yield f"cgroup {folder}"


def _network(layout: Layout) -> Iterator[str]:
    record = read_record(layout)
    if record and network.interface_exists(Addresses(record.slot)):
        yield f"interface {Addresses(record.slot).interface}"
    if network.FORWARDING_BEFORE.exists() and not network.any_cluster():
        yield f"changed setting {network.FORWARDING}"
    for table, rule in network.machine_rules(layout):
        yield f"iptables rule in {table}: {' '.join(rule[1:])}"


def _mounts(layout: Layout) -> Iterator[str]:
    for target in mounts_below([layout.state, layout.run], MOUNTS.read_text()):
        yield f"mount {target}"


def _folders(layout: Layout) -> Iterator[str]:
    for folder in (layout.state, layout.run):
        if folder.exists():
            yield f"folder {folder}"
    if packages.policy_left():
        yield f"file {packages.POLICY}"


def mounts_below(folders: list[Path], mounts: str) -> list[str]:
    """Mount points in /proc/self/mountinfo at or below the folders, deepest first."""
    targets = [line.split()[4] for line in mounts.splitlines()]
    inside = [t for t in targets if any(Path(t) == folder or folder in Path(t).parents for folder in folders)]
    return sorted(inside, key=len, reverse=True)


def clean(layout: Layout) -> int:
    """Removes everything of the cluster, whatever state it is in; returns the number of processes it ended.

    Raises:
        ClusterError: something cannot be removed; says what.
    """
    record = read_record(layout)
    ended = processes.end_all(layout.state)
    network.disconnect(layout, Addresses(record.slot) if record else None)
    cgroups.remove(layout.cgroup)
    if mounts := mounts_below([layout.state, layout.run], MOUNTS.read_text()):
        raise ClusterError(f"something is mounted inside the cluster's folders; unmount it first: {', '.join(mounts)}")
    for folder in (layout.run, layout.state):
        if folder.exists():
            shutil.rmtree(folder)
    packages.remove_policy()
    _remove_mount_points()
    return ended


def _remove_mount_points() -> None:
    """The system folders that were made to be mounted on, where nothing uses them: no other cluster, no content."""
    if network.any_cluster():
        return
    for name in NODE_FOLDERS:
        with contextlib.suppress(OSError):  # not empty, so it is somebody's, or it is not there
            Path(name).rmdir()
