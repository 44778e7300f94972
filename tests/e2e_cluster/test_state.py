"""What is remembered of a cluster, and how its state is read."""

from pathlib import Path
from typing import Any

import pytest

from e2e.cluster.bootstrap import bootstrap_objects, node_usable
from e2e.cluster.layout import Layout
from e2e.cluster.processes import Process, components
from e2e.cluster.progress import seconds
from e2e.cluster.record import Record, read_record, reports, write_record
from e2e.cluster.status import duration


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout("default", tmp_path)


def test_a_record_reads_back(layout: Layout) -> None:
    """What `up` wrote, `down` knows."""
    record = Record(3, "v1.20.2", "/binaries", complete=True)
    write_record(layout, record)
    assert read_record(layout) == record


@pytest.mark.parametrize("content", [None, "", "{", '{"slot": 1}', "[]"])
def test_a_record_that_was_cut_short_is_none(layout: Layout, content: str | None) -> None:
    """A full disk or a crash leaves anything at all; it is then cleaned without a slot."""
    if content is not None:
        layout.state.mkdir()
        layout.record.write_text(content)
    assert read_record(layout) is None


def test_before_the_first_report_nothing_is_known(layout: Layout) -> None:
    """The supervisor writes it when it starts the first component."""
    assert reports(layout) == {}


def node(ready: str, *taints: str) -> dict[str, Any]:
    return {
        "spec": {"taints": [{"key": key} for key in taints]},
        "status": {"conditions": [{"type": "Ready", "status": ready}]},
    }


@pytest.mark.parametrize(
    ("found", "usable"),
    [
        (None, False),
        (node("False"), False),
        (node("Unknown"), False),
        (node("True", "node.kubernetes.io/not-ready"), False),
        (node("True", "example.org/mine"), True),
        (node("True"), True),
        ({"spec": {}, "status": {}}, False),
    ],
)
def test_when_a_node_is_usable(found: dict[str, Any] | None, usable: bool) -> None:
    """Ready, and no longer tainted as not ready."""
    assert node_usable(found) is usable


def test_the_dns_service_has_the_address_that_pods_are_told() -> None:
    """Service and endpoints of one name, UDP and TCP."""
    objects = {body["metadata"]["name"]: body for path, body in bootstrap_objects("10.96.0.10", "10.243.0.2")}
    assert "kube-dns" in objects
    services = [body for path, body in bootstrap_objects("10.96.0.10", "10.243.0.2") if path.endswith("/services")]
    assert [body["spec"]["clusterIP"] for body in services] == ["10.96.0.10"]
    assert [port["protocol"] for port in services[0]["spec"]["ports"]] == ["UDP", "TCP"]


def test_a_components_children_are_not_taken_for_it() -> None:
    """They inherit its mark; the oldest process is the component."""
    found = [Process(10, 1, "containerd", 5.0, 1), Process(20, 1, "containerd", 9.0, 1), Process(11, 1, "etcd", 5.1, 1)]
    assert {name: process.pid for name, process in components(found).items()} == {"containerd": 10, "etcd": 11}


@pytest.mark.parametrize(
    ("value", "expected"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (60, "1 min 0 s"), (585, "9 min 45 s")]
)
def test_times_of_steps(value: float, expected: str) -> None:
    """Tenths of seconds, and minutes from one on."""
    assert seconds(value) == expected


@pytest.mark.parametrize(("value", "expected"), [(3.9, "3s"), (310, "5m10s"), (11100, "3h5m")])
def test_ages_of_components(value: float, expected: str) -> None:
    """As kubectl shows ages."""
    assert duration(value) == expected
