"""Building Kubernetes: what the output tells, and the environment it is built in."""

from pathlib import Path

import pytest

from e2e.cluster.build import VERSION, build_environment, built_folder, is_built, is_package
from e2e.cluster.versions import SERVERS


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("k8s.io/kubernetes/pkg/apis/core\n", True),
        ("vendor/golang.org/x/net/http/httpguts\n", True),
        ("unicode\n", True),
        ("+++ [1120 10:44:36] Building go targets for linux/amd64:\n", False),
        ("    cmd/kubelet\n", False),
        ("make[1]: Entering directory\n", False),
    ],
)
def test_packages_are_counted(line: str, expected: bool) -> None:
    """One line for each package that is compiled; make and its scripts talk too."""
    assert is_package(line) is expected


def test_the_build_uses_vendored_sources_and_names_its_version(tmp_path: Path) -> None:
    """The servers report the version of the source package, and Go fetches nothing."""
    environment = build_environment(tmp_path)
    assert environment["GO111MODULE"] == "off"
    assert environment["KUBE_GIT_VERSION"] == str(VERSION) == "v1.20.2"


def test_a_build_is_complete_only_with_all_servers(tmp_path: Path) -> None:
    """A build that was cut short is not taken for one."""
    folder = built_folder(tmp_path)
    folder.mkdir(parents=True)
    for name in SERVERS:
        assert not is_built(tmp_path)
        (folder / name).touch()
    assert is_built(tmp_path)
