"""Whether a rollout surges or goes in place."""

from datetime import timedelta
from typing import Any

import pytest

from kvasir_operator.planning.rollout import Bounds
from kvasir_operator.planning.room import rollout_bounds
from kvasir_operator.planning.state import Pod, PodCondition, Snapshot, Stage
from kvasir_operator.resources.template_hash import RevisionTemplate
from kvasir_operator.settings import Settings
from tests.kvasir_operator.planning.builders import NOW, SILENT, ago, pod, revision, service, snapshot

NO_CPU = "0/2 nodes are available: 1 Insufficient cpu, 1 Insufficient memory."


def pending(name: str = "n", message: str = NO_CPU, since_s: float = 31) -> Pod:
    scheduled = PodCondition("False", "Unschedulable", message, ago(since_s))
    return pod(name, Stage.STARTING, node="", containers=(), runtime=SILENT, conditions={"PodScheduled": scheduled})


def template(**spec: Any) -> RevisionTemplate:
    return RevisionTemplate.of(service(**spec), Settings())


def bounds(
    new: list[Pod],
    strategy: str = "Auto",
    cordoned: frozenset[str] = frozenset(),
    *,
    moving: bool = False,
    **spec: Any,
) -> Any:
    old = [pod("o", revision="old")]
    made: Snapshot = snapshot(
        [*new, *old],
        history=(revision("old", 1, template=template()),),
        template=template(**spec),
        cordoned=cordoned,
        rollout={"strategy": strategy},
    )
    assert made.spec is not None
    return rollout_bounds(made, made.spec, new, old, NOW, moving=moving)


@pytest.mark.parametrize(
    ("new", "strategy", "spec", "expected"),
    [
        ([pending()], "Surge", {}, Bounds(1, 0)),
        ([pending()], "InPlace", {}, Bounds(0, 1, 1)),
        ([], "InPlace", {}, Bounds(0, 1)),
        ([], "Auto", {}, Bounds(1, 0)),
        ([pending(since_s=29)], "Auto", {}, Bounds(1, 0)),
        ([pending()], "Auto", {}, Bounds(1, 1)),
        ([pending("a"), pending("b")], "Auto", {}, Bounds(1, 1, 1)),
        ([pending(message="1 Insufficient nvidia.com/gpu.")], "Auto", {}, Bounds(1, 1)),
        ([pending(message="1 Too many pods.")], "Auto", {}, Bounds(1, 1)),
        # An old one's leaving would not help.
        ([pending(message="1 node(s) didn't match node selector.")], "Auto", {}, Bounds(1, 0)),
        ([pending()], "Auto", {"resources": {"requests": {"cpu": "64"}}}, Bounds(1, 0)),
        ([pending()], "Auto", {"nodeSelector": {"a": "b"}}, Bounds(1, 0)),
        ([pending()], "Auto", {"accelerator": {"vendor": "nvidia"}}, Bounds(1, 0)),
    ],
)
def test_bounds(new: list[Pod], strategy: str, spec: dict[str, Any], expected: Bounds) -> None:
    """The module's table, and what makes no room."""
    assert bounds(new, strategy, **spec)[0] == expected


def test_when_patience_ends() -> None:
    """The plan is made again then."""
    assert bounds([pending(since_s=10)])[1] == NOW + timedelta(seconds=20)


def test_a_cordoned_node_makes_no_room() -> None:
    """What leaves it helps nobody."""
    assert bounds([pending()], cordoned=frozenset({"node-1"}))[0] == Bounds(1, 0)


@pytest.mark.parametrize("strategy", ["Auto", "Surge", "InPlace"])
def test_a_move_surges_and_leaves_what_may_be_missing_to_evictions(strategy: str) -> None:
    """Whatever the strategy."""
    assert bounds([pending()], strategy, moving=True)[0] == Bounds(1, 0)
