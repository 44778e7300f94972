"""Where a pod stands: the table above `Pod.stage`, line by line."""

import pytest

from kvasir_operator.planning.state import Pod, PodCondition, PodPhase, Stage
from tests.kvasir_operator.planning.builders import NOW, closed, gates

READY = {"Ready": PodCondition("True")}
UNREADY = {"Ready": PodCondition("False")}
OPEN, DRAINING, RESTARTED = gates(), closed("Draining"), closed("Restarted")


@pytest.mark.parametrize(
    ("deleting", "phase", "conditions", "stage"),
    [
        (True, PodPhase.RUNNING, OPEN | READY, Stage.LEAVING),
        (True, PodPhase.FAILED, DRAINING, Stage.LEAVING),
        (False, PodPhase.FAILED, OPEN | READY, Stage.FINISHED),
        (False, PodPhase.SUCCEEDED, {}, Stage.FINISHED),
        (False, PodPhase.RUNNING, DRAINING | READY, Stage.DRAINING),
        (False, PodPhase.PENDING, {}, Stage.STARTING),
        (False, PodPhase.RUNNING, READY, Stage.STARTING),
        (False, PodPhase.RUNNING, OPEN | READY, Stage.SERVING),
        (False, PodPhase.RUNNING, OPEN | UNREADY, Stage.UNREADY),
        (False, PodPhase.RUNNING, OPEN, Stage.UNREADY),
        (False, PodPhase.RUNNING, RESTARTED | READY, Stage.UNREADY),
    ],
)
def test_stage(deleting: bool, phase: PodPhase, conditions: dict[str, PodCondition], stage: Stage) -> None:
    """The first line that holds decides."""
    pod = Pod("p", "u", "r", NOW, phase=phase, deleting=deleting, conditions=conditions)
    assert pod.stage is stage
