"""Hierarchies of control groups: version 1, version 2 and both."""

from pathlib import Path

import pytest

from e2e.cluster import cgroups


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cgroups, "ROOT", tmp_path)
    return tmp_path


def hierarchy(root: Path, name: str, *files: str) -> Path:
    folder = root / name
    folder.mkdir(exist_ok=True)
    for file in ("cgroup.procs", *files):
        (folder / file).write_text("")
    return folder


def test_version_1_counts_linked_controllers_once(root: Path) -> None:
    """`cpu` and `cpuacct` are often links to one hierarchy."""
    both, memory = hierarchy(root, "cpu,cpuacct"), hierarchy(root, "memory")
    (root / "cpu").symlink_to("cpu,cpuacct")
    (root / "cpuacct").symlink_to("cpu,cpuacct")
    assert not cgroups.is_v2()
    assert cgroups.hierarchies() == [both, memory]


def test_hybrid_includes_the_unified_hierarchy(root: Path) -> None:
    """Version 2 beside version 1, without controllers of its own."""
    folders = [hierarchy(root, "memory"), hierarchy(root, "unified", "cgroup.controllers", "cgroup.subtree_control")]
    assert not cgroups.is_v2()
    assert cgroups.hierarchies() == folders


def test_version_2_is_one_hierarchy(root: Path) -> None:
    """The root itself, whatever cgroups are below it."""
    hierarchy(root, ".", "cgroup.controllers")
    hierarchy(root, "system.slice")
    assert cgroups.is_v2()
    assert cgroups.hierarchies() == [root]


def test_cgroups_of_a_cluster_are_listed_deepest_first(root: Path) -> None:
    """So that each is empty when it is removed; a cluster whose name begins alike is another."""
    for name in ("kvasir-cluster-a", "kvasir-cluster-a/system", "kvasir-cluster-a/kubepods", "kvasir-cluster-ab"):
        hierarchy(root, "memory")
        hierarchy(root / "memory", name)
    (root / "memory/kvasir-cluster-a/system/cgroup.procs").write_text("12\n13\n")
    found = cgroups.folders("kvasir-cluster-a")
    assert found[-1] == root / "memory/kvasir-cluster-a"
    assert len(found) == 3
    assert cgroups.members("kvasir-cluster-a") == {12, 13}
