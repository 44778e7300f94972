"""A cluster decided for any version, without one."""

from collections.abc import Callable
from pathlib import Path

import pytest

from e2e.cluster.flags import NodeFacts, Spec, Tools
from e2e.cluster.layout import Addresses, Layout
from e2e.cluster.versions import KubeVersion

MakeSpec = Callable[..., Spec]


@pytest.fixture
def make_spec() -> MakeSpec:
    """Builds the Spec of a version, on a machine with cgroup version 1 unless told otherwise."""

    def make(version: str, *, cgroup_v2: bool = False, may_lower_oom_score: bool = True) -> Spec:
        tools = Path("/tools")
        return Spec(
            layout=Layout("default", Path("/cache")),
            addresses=Addresses(0),
            version=KubeVersion.parse(version),
            binaries=Path("/binaries"),
            tools=Tools(tools / "etcd", tools / "containerd", tools / "ctr", tools / "runc", tools / "cni"),
            facts=NodeFacts(cgroup_v2, may_lower_oom_score, "overlayfs"),
        )

    return make
