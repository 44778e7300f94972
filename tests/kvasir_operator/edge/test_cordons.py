"""Nodes that are being emptied."""

from typing import Any

import pytest

from kvasir_operator.cordons import Cordons, is_cordoned


def node(version: int = 1, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "n", "resourceVersion": str(version)}, "spec": spec}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, False),
        ({"unschedulable": True}, True),
        ({"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}, True),
        ({"taints": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]}, False),
    ],
)
def test_what_counts_as_cordoned(spec: dict[str, Any], expected: bool) -> None:
    """A cordon, or the taint of whoever is about to take the node away."""
    assert is_cordoned(node(**spec)) is expected


def test_only_changes_are_news_and_older_versions_are_left_out() -> None:
    """A node that goes is cordoned no more."""
    cordons = Cordons()
    assert cordons.notice(None, node(1)) is None
    assert cordons.notice("MODIFIED", node(3, unschedulable=True)) == "n"
    assert cordons.notice("MODIFIED", node(4, unschedulable=True)) is None
    assert cordons.notice("MODIFIED", node(2)) is None
    assert cordons.cordoned == {"n"}
    assert cordons.notice("DELETED", node(5, unschedulable=True)) == "n"
    assert cordons.cordoned == frozenset()
