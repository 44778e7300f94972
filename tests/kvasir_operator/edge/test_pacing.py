"""How soon a service is looked at again."""

import pytest

from kvasir_operator.pacing import Pace, is_at_rest, next_interval
from kvasir_operator.placement.groups import Role, Turn
from kvasir_operator.placement.outlook import Outlook
from kvasir_operator.planning.state import Stage
from tests.kvasir_operator.planning.builders import NOW, SILENT, engine, pod, snapshot

PACE = Pace(busy_s=5, idle_s=60)
IDLE, BUSY, DRAINING = pod("i"), pod("b", runtime=engine(inflight=1)), pod("d", Stage.DRAINING)


def starting(age_s: float):
    return pod("s", Stage.STARTING, age_s=age_s)


@pytest.mark.parametrize(
    ("pods", "before", "interval"),
    [
        ([IDLE, DRAINING, starting(1)], 60, 0.5),
        ([IDLE, starting(1)], 60, 1),
        ([starting(100), starting(40)], 1, 4),
        ([starting(5000)], 1, 60),
        ([IDLE, BUSY], 60, 5),
        ([IDLE], 0, 5),
        ([IDLE], 5, 10),
        ([IDLE], 40, 60),
        ([pod("x", runtime=SILENT)], 60, 60),
        ([], 30, 60),
    ],
)
def test_next_interval(pods, before: float, interval: float) -> None:
    """Often while something moves, twice as seldom each time that nothing does."""
    assert next_interval(snapshot(pods), before, PACE, NOW) == interval


def test_who_waits_for_his_group_is_looked_at_often() -> None:
    """It has no pods whose events would tell that there is room now."""
    waits = snapshot(outlook=Outlook(turn=Turn(Role.WAITS, "not yet")))
    assert next_interval(waits, 30, PACE, NOW) == PACE.busy_s
    assert not is_at_rest(waits)
    assert is_at_rest(snapshot())
