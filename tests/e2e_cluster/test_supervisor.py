"""The node's first process: what it starts again, and when."""

import json
import os
from pathlib import Path

import pytest

from e2e.cluster.supervisor import BACKOFF, LASTED, Component, Supervisor, gate_open


@pytest.fixture
def supervisor(tmp_path: Path) -> Supervisor:
    components = [{"name": "one", "argv": ["/bin/true"], "env": {}, "log": str(tmp_path / "one.log")}]
    plan = {"components": components, "authority": "", "report": str(tmp_path / "report.json")}
    return Supervisor(plan, host_network=-1)


def end(supervisor: Supervisor, now: float, status: int = 0x0100) -> float:
    """The only component ends at `now`; returns after how long it is due again."""
    component = supervisor.components[0]
    component.pid = 7
    assert supervisor._ended(7, status, now)
    return component.due - now


def test_a_component_that_keeps_ending_is_started_less_and_less_often(supervisor: Supervisor) -> None:
    """0.2 s after the first end, 10 s after the fourth and every later one."""
    assert [round(end(supervisor, 10.0), 3) for _ in range(6)] == [*BACKOFF, BACKOFF[-1], BACKOFF[-1]]


def test_a_component_that_ran_long_is_started_again_at_once(supervisor: Supervisor) -> None:
    """An end after an hour counts as the first."""
    for _ in range(5):
        end(supervisor, 10.0)
    supervisor.components[0].started = 20.0
    assert round(end(supervisor, 20.0 + LASTED + 1), 3) == BACKOFF[0]
    supervisor.components[0].started = 90.0
    assert round(end(supervisor, 91.0), 3) == BACKOFF[1]


def test_the_report_tells_ends_and_statuses(supervisor: Supervisor) -> None:
    """Exit status 1 after one end."""
    end(supervisor, 100.0)
    supervisor._write_report()
    assert json.loads(supervisor.report.read_text()) == {"one": {"running": False, "ends": 1, "last_status": 1}}


def test_an_orphan_is_nobodys_end(supervisor: Supervisor) -> None:
    """Reaping a process that is no component changes nothing."""
    assert not supervisor._ended(12345, 0, 100.0)


def test_a_started_component_runs_with_its_log_and_ends(supervisor: Supervisor, tmp_path: Path) -> None:
    """What a program prints goes to its log; one that cannot be run ends with status 127 and says why there."""
    log = tmp_path / "log"
    environment = {"WORD": "hello"}
    good = Component("good", ["/bin/sh", "-c", "echo $WORD"], environment, str(log))
    assert os.waitstatus_to_exitcode(os.waitpid(supervisor._spawn(good), 0)[1]) == 0
    bad = Component("bad", ["/nonexistent"], {}, str(log))
    assert os.waitstatus_to_exitcode(os.waitpid(supervisor._spawn(bad), 0)[1]) == 127
    assert log.read_text().startswith("hello\ncannot start /nonexistent: ")


def test_a_gate_that_nobody_answers_stays_shut(tmp_path: Path) -> None:
    """No authority file, no server: not open, and no error either."""
    assert not gate_open("https://127.0.0.1:1/readyz", str(tmp_path / "none.crt"))
