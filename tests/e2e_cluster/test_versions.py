"""Versions of servers, as these print them."""

from pathlib import Path

import pytest

from e2e.cluster.errors import UsageError
from e2e.cluster.versions import SERVERS, KubeVersion, binaries_version


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Kubernetes v1.20.2", KubeVersion(1, 20, 2)),
        ("Kubernetes v1.36.0-alpha.1", KubeVersion(1, 36, 0)),
        ("v1.31.4+k3s1\n", KubeVersion(1, 31, 4)),
        ("1.27", KubeVersion(1, 27, 0)),
    ],
)
def test_versions_are_read(text: str, expected: KubeVersion) -> None:
    """Of the servers themselves and of distributions."""
    assert KubeVersion.parse(text) == expected


def test_versions_compare_by_number() -> None:
    """1.9 is older than 1.20."""
    assert KubeVersion.parse("1.9") < KubeVersion.parse("1.20")
    assert KubeVersion.parse("1.24.1").at_least(1, 24)
    assert not KubeVersion.parse("1.23.17").at_least(1, 24)


def servers(folder: Path, **versions: str) -> Path:
    for name in SERVERS:
        script = folder / name
        script.write_text(f"#!/bin/sh\necho Kubernetes {versions.get(name.replace('-', '_'), versions['default'])}\n")
        script.chmod(0o755)
    return folder


def test_a_folder_of_servers_is_asked_for_its_version(tmp_path: Path) -> None:
    """All five are run with --version."""
    assert binaries_version(servers(tmp_path, default="v1.31.4")) == KubeVersion(1, 31, 4)


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        ({"default": "v1.31.4", "kubelet": "v1.30.1"}, "different versions.*kubelet v1.30.1"),
        ({"default": "v1.19.0"}, "v1.19.0 is older than v1.20.0"),
        ({"default": "nonsense"}, "no Kubernetes version in 'Kubernetes nonsense'"),
    ],
)
def test_servers_that_do_not_fit_are_refused(tmp_path: Path, versions: dict[str, str], message: str) -> None:
    """The message names the server and what it said."""
    with pytest.raises(UsageError, match=message):
        binaries_version(servers(tmp_path, **versions))


def test_missing_servers_are_named(tmp_path: Path) -> None:
    """All that are missing, at once."""
    servers(tmp_path, default="v1.31.4")
    (tmp_path / "kubelet").unlink()
    (tmp_path / "kube-proxy").unlink()
    with pytest.raises(UsageError, match="kubelet, kube-proxy not found"):
        binaries_version(tmp_path)
