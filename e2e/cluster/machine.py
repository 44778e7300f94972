"""What this machine allows."""

from pathlib import Path

from e2e.cluster import cgroups
from e2e.cluster.flags import NodeFacts

CAP_SYS_RESOURCE = 24  # its bit, see capability.h
NO_UPPER_LAYER = ("overlay", "nfs", "nfs4", "fuse")  # file systems that cannot hold overlayfs' upper layer


def node_facts(cache: Path) -> NodeFacts:
    """Asks the machine what it allows."""
    status = Path("/proc/self/status").read_text()
    capabilities = int(status.split("CapEff:")[1].split()[0], 16)
    return NodeFacts(
        cgroup_v2=cgroups.is_v2(),
        may_lower_oom_score=bool(capabilities >> CAP_SYS_RESOURCE & 1),
        snapshotter="native"
        if file_system(cache, Path("/proc/self/mountinfo").read_text()) in NO_UPPER_LAYER
        else "overlayfs",
    )


def file_system(folder: Path, mounts: str) -> str:
    """The type of the file system that holds a folder; in `mounts` (/proc/self/mountinfo) later lines cover earlier."""
    best, kind = "", "unknown"
    for line in mounts.splitlines():
        left, right = line.split(" - ", 1)
        target = left.split()[4]
        if (folder == Path(target) or Path(target) in folder.parents) and len(target) >= len(best):
            best, kind = target, right.split()[0]
    return kind
