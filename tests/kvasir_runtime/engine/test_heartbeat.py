"""The table above `HeartbeatMonitor`, row by row."""

import pytest

from kvasir_runtime.engine.heartbeat import HeartbeatMonitor
from kvasir_runtime.engine.messages import Heartbeat


def monitor_after(beats: int, *, step: bool = False, cpu_per_second: float = 0.0005) -> HeartbeatMonitor:
    """A monitor that has heard a beat a second since it was ready at time 0."""
    monitor = HeartbeatMonitor()
    monitor.ready(0.0)
    for second in range(1, beats + 1):
        monitor.observe(Heartbeat(float(second) if step else 0.0, second * cpu_per_second), float(second))
    return monitor


@pytest.mark.parametrize(
    ("monitor", "now", "alive", "message"),
    [
        (monitor_after(100), 100.5, True, ""),
        (monitor_after(100), 117.9, True, ""),
        (monitor_after(100), 118.1, False, "no heartbeat for 18 s"),
        (monitor_after(120, step=True, cpu_per_second=1.0), 120.5, True, ""),
        (monitor_after(18, step=True), 18.9, True, ""),
        (monitor_after(20, step=True), 20.0, False, "a step has run for 20 s and uses no CPU"),
        (monitor_after(25, step=True), 25.5, False, "a step has run for 25 s and uses no CPU"),
        (monitor_after(600, step=True, cpu_per_second=1.0), 600.5, True, ""),
        (monitor_after(601, step=True, cpu_per_second=1.0), 601.5, False, "one step has run for 601 s"),
        (HeartbeatMonitor(), 1000.0, True, "loading"),
    ],
    ids=[
        "idle-or-full-queue-or-paused-client",
        "late",
        "silent",
        "prefill-of-two-minutes",
        "young-step",
        "just-stuck",
        "stuck",
        "very-long",
        "endless",
        "loading",
    ],
)
def test_verdicts(monitor, now, alive, message):
    """What is heard decides, not what is guessed."""
    verdict = monitor.judge(now)
    assert (verdict.alive, verdict.message.startswith(message)) == (alive, True)


def test_a_finished_step_is_a_heartbeat():
    """Outputs show life as well as heartbeats do, and end the step's age."""
    monitor = monitor_after(25, step=True)
    monitor.step_finished(25.2)
    assert monitor.judge(30.0).alive
    assert monitor.judge(30.0).heartbeat_age_s == pytest.approx(4.8)


def test_work_before_the_step_does_not_hide_its_standstill():
    """CPU time counts from the step on: a busy engine whose next step hangs is dead within 20 s of it."""
    monitor = HeartbeatMonitor()
    monitor.ready(0.0)
    for second in range(1, 121):
        stuck = max(0, second - 100)
        monitor.observe(Heartbeat(float(stuck), min(second, 100) * 1.0), float(second))
        assert monitor.judge(float(second)).alive == (second < 119)


def test_recovery():
    """A process that was stopped and goes on is alive again."""
    monitor = monitor_after(10)
    assert not monitor.judge(60.0).alive
    monitor.observe(Heartbeat(0.0, 0.01), 60.0)
    assert monitor.judge(60.5).alive
