"""What the machine allows, and what is mounted where."""

from pathlib import Path

import pytest

from e2e.cluster.leftovers import mounts_below
from e2e.cluster.machine import file_system

MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:5 / /home rw shared:2 - nfs4 server:/home rw
24 23 0:6 / /home/u/data rw shared:3 - xfs /dev/vdb rw
25 22 0:7 / /cache rw shared:4 - ext4 /dev/vdc rw
26 25 0:8 / /cache rw shared:5 - overlay overlay rw
27 25 0:9 / /cache/cluster/node/x rw shared:5 - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("folder", "expected"),
    [("/srv", "ext4"), ("/home/u", "nfs4"), ("/home/u/data/x", "xfs"), ("/homestead", "ext4"), ("/cache", "overlay")],
)
def test_the_file_system_of_a_folder(folder: str, expected: str) -> None:
    """The longest mount point wins, and of two at one place the later; names that merely begin alike are others."""
    assert file_system(Path(folder), MOUNTS) == expected


def test_mounts_inside_folders() -> None:
    """The folder itself and what is below it, deepest first, so that they can be undone in that order."""
    assert mounts_below([Path("/cache")], MOUNTS) == ["/cache/cluster/node/x", "/cache", "/cache"]
    assert mounts_below([Path("/cache/cluster-lab")], MOUNTS) == []
