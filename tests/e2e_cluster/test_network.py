"""Addresses that collide with nobody's, and rules that are found again."""

import json

import pytest

from e2e.cluster.errors import UsageError
from e2e.cluster.layout import SLOTS, Addresses, layout_for
from e2e.cluster.network import deletions, machine_routes

RULES = """\
-P FORWARD ACCEPT
-A FORWARD -i docker0 -j ACCEPT
-A FORWARD -i kvasir0 -m comment --comment "kvasir-cluster/default" -j ACCEPT
-A FORWARD -i kvasir1 -m comment --comment "kvasir-cluster/default-2" -j ACCEPT
-A FORWARD -o kvasir0 -m comment --comment kvasir-cluster/default -j ACCEPT
"""


def test_only_rules_of_this_very_cluster_are_deleted() -> None:
    """Another cluster's name that begins the same is another cluster; quoting does not matter."""
    comment = ["-m", "comment", "--comment", "kvasir-cluster/default", "-j", "ACCEPT"]
    assert deletions(RULES, "kvasir-cluster/default") == [
        ["-D", "FORWARD", "-i", "kvasir0", *comment],
        ["-D", "FORWARD", "-o", "kvasir0", *comment],
    ]


def test_routes_of_the_machine() -> None:
    """The default route covers everything and collides with nothing."""
    listing = json.dumps([{"dst": "default"}, {"dst": "10.96.0.0/24"}, {"dst": "172.17.0.0/16"}])
    assert machine_routes(listing) == ["10.96.0.0/24", "172.17.0.0/16"]


@pytest.mark.parametrize(
    ("route", "collides"),
    [
        ("10.0.0.0/8", True),
        ("10.96.3.0/24", True),
        ("10.244.0.0/16", True),
        ("10.97.0.0/16", False),
        ("10.1.2.3", False),
    ],
)
def test_collisions_with_the_machines_routes(route: str, collides: bool) -> None:
    """A wider or a narrower network both collide; a host route counts as a network of one."""
    assert bool(Addresses(0).overlaps([route])) is collides


def test_slots_never_collide_with_each_other() -> None:
    """Clusters side by side have networks of their own."""
    for slot in range(SLOTS):
        others = [Addresses(other) for other in range(SLOTS) if other != slot]
        taken = [cidr for other in others for cidr in (other.link_cidr, other.pod_cidr, other.service_cidr)]
        assert not Addresses(slot).overlaps(taken)


@pytest.mark.parametrize("name", ["", "-x", "UPPER", "a" * 21, "a/b", "x_y"])
def test_names_that_cannot_be_part_of_a_node_name_are_refused(name: str) -> None:
    """The message says what a name may hold."""
    with pytest.raises(UsageError, match="1 to 20"):
        layout_for(name)


def test_the_default_clusters_kubeconfig_has_a_stable_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Documented, and used by scripts."""
    monkeypatch.delenv("KVASIR_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/u/.cache")
    assert str(layout_for("default").kubeconfig) == "/home/u/.cache/kvasir/cluster/kubeconfig"
    assert str(layout_for("lab").kubeconfig) == "/home/u/.cache/kvasir/cluster-lab/kubeconfig"
