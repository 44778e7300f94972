"""Which replica goes first."""

from kvasir_operator.planning.ordering import in_order_of_removal
from kvasir_operator.planning.state import Stage
from tests.kvasir_operator.planning.builders import SILENT, engine, pod


def test_order_of_removal():
    """Not yet placed, starting, unready, serving: cold before warm, idle before busy, silent last, young before old."""
    pods = [
        pod("silent", runtime=SILENT),
        pod("hot", runtime=engine(value=900)),
        pod("busy", runtime=engine(inflight=2)),
        pod("old", age_s=900),
        pod("young", age_s=90),
        pod("unready", Stage.UNREADY),
        pod("starting", Stage.STARTING),
        pod("unplaced", Stage.STARTING, node="", ip="", containers=()),
    ]
    expected = ["unplaced", "starting", "unready", "young", "old", "busy", "hot", "silent"]
    assert [each.name for each in in_order_of_removal(pods)] == expected
    assert [each.name for each in in_order_of_removal(reversed(pods))] == expected
