"""Which Debian packages are wanted, and what their installation may start."""

from pathlib import Path

import pytest

from e2e.cluster import packages, shell
from e2e.cluster.errors import ClusterError


def test_only_packages_of_missing_programs_are_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program on PATH is taken as it is, whichever package it came from."""
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "kubectl").write_text("#!/bin/sh\n")
    (tmp_path / "kubectl").chmod(0o755)
    assert packages.missing({"kubectl": "kubernetes-client", "socat": "socat"}) == ["socat"]


def test_missing_libraries_are_wanted() -> None:
    """The C library is there, the other is not."""
    libraries = {"libc.so.6": "libc6", "libnowhere.so.9": "libnowhere9"}
    assert packages.missing({}, libraries) == ["libnowhere9"]


@pytest.fixture
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "policy-rc.d"
    monkeypatch.setattr(packages, "POLICY", path)
    return path


def test_no_daemon_starts_while_packages_are_installed(policy: Path) -> None:
    """The policy forbids (101) inside, and is gone outside."""
    with packages.no_daemons():
        assert "exit 101" in policy.read_text()
        assert policy.stat().st_mode & 0o111
    assert not policy.exists()


def test_a_failed_installation_leaves_no_policy(policy: Path) -> None:
    """Packages that the user installs afterwards start their services."""
    with pytest.raises(ZeroDivisionError), packages.no_daemons():
        _ = 1 / 0
    assert not policy.exists()


def test_an_administrators_policy_is_kept(policy: Path) -> None:
    """It may well forbid too; it is not ours to change."""
    policy.write_text("#!/bin/sh\nexit 0\n")
    with packages.no_daemons():
        assert policy.read_text() == "#!/bin/sh\nexit 0\n"
    assert policy.read_text() == "#!/bin/sh\nexit 0\n"
    assert not packages.policy_left()


def test_the_policy_that_a_killed_installation_left_is_removed(policy: Path) -> None:
    """It would keep every later package of the machine from starting its services."""
    policy.write_text(packages.POLICY_TEXT)
    assert packages.policy_left()
    packages.remove_policy()
    assert not policy.exists()


def test_packages_are_unpacked_once_and_only_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted fetch counts as none; other packages have a folder of their own; what cannot run is told."""
    commands: list[list[str]] = []

    def run(command: list[object], **_: object) -> str:
        commands.append([str(part) for part in command])
        if "broken" in commands[-1]:
            raise ClusterError("no such package")
        return ""

    monkeypatch.setattr(shell, "run", run)
    with pytest.raises(ClusterError, match="no such package"):
        packages.unpack(tmp_path, ("broken",), ())
    assert packages.unpacked(tmp_path, ("broken",)) is None
    assert ["apt-get", "-q", "update"] in commands
    root = packages.unpack(tmp_path, ("prometheus",), ("usr/bin/prometheus",))
    assert packages.unpacked(tmp_path, ("prometheus",)) == root
    assert packages.unpacked(tmp_path, ("etcd-server",)) is None
    assert commands[-1] == [f"{root}/usr/bin/prometheus", "--version"]
