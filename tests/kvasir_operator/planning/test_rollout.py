"""How an old revision gives way to a new one."""

import pytest

from kvasir_operator.api.v1alpha1 import RolloutSpec
from kvasir_operator.planning.rollout import Bounds, next_step
from kvasir_operator.planning.state import Stage
from tests.kvasir_operator.planning.builders import pod, waiting

SURGE, IN_PLACE = Bounds(1, 0), Bounds(0, 1)


def replicas(letters: str, revision: str):
    """`s` serves, `.` starts, `u` lost its readiness, `x` is kept from starting again."""
    made = {
        "s": lambda name: pod(name, revision=revision),
        ".": lambda name: pod(name, Stage.STARTING, revision=revision),
        "u": lambda name: pod(name, Stage.UNREADY, revision=revision),
        "x": lambda name: pod(name, Stage.UNREADY, revision=revision, containers=(waiting("CrashLoopBackOff"),)),
    }
    return [made[letter](f"{revision}-{number}") for number, letter in enumerate(letters)]


@pytest.mark.parametrize(
    ("new", "old", "draining", "wanted", "bounds", "create", "remove"),
    [
        # One replica, surge: make one, wait until it serves, let the old one go.
        ("", "s", 0, 1, SURGE, 1, []),
        (".", "s", 0, 1, SURGE, 0, []),
        ("s", "s", 0, 1, SURGE, 0, ["old-0"]),
        ("s", "", 1, 1, SURGE, 0, []),
        # Three replicas: a draining pod still holds its accelerator.
        ("", "sss", 0, 3, SURGE, 1, []),
        ("s", "sss", 0, 3, SURGE, 0, ["old-0"]),
        ("s", "ss", 1, 3, SURGE, 0, []),
        ("s", "ss", 0, 3, SURGE, 1, []),
        ("ss", "ss", 0, 3, SURGE, 0, ["old-0"]),
        # In place: one goes first.
        ("", "s", 0, 1, IN_PLACE, 0, ["old-0"]),
        ("", "", 1, 1, IN_PLACE, 0, []),
        ("", "ss", 0, 2, IN_PLACE, 0, ["old-0"]),
        (".", "s", 0, 2, IN_PLACE, 0, []),
        ("s", "s", 0, 2, IN_PLACE, 0, ["old-0"]),
        # Old pods that nobody misses make room at once.
        ("", "...", 0, 3, SURGE, 3, ["old-0", "old-1", "old-2"]),
        ("", "x", 0, 1, SURGE, 1, ["old-0"]),
        ("", "s.", 0, 2, SURGE, 2, ["old-1"]),
        # One that may come back stays until enough others serve.
        ("", "u", 0, 1, SURGE, 1, []),
        (".", "u", 0, 1, SURGE, 0, []),
        ("s", "u", 0, 1, SURGE, 0, ["old-0"]),
        ("s", "su", 0, 2, SURGE, 0, ["old-1"]),
        # Down to nothing.
        ("", "ss", 0, 0, SURGE, 0, ["old-0", "old-1"]),
        # More surge, more at once.
        ("", "ssss", 0, 4, Bounds(2, 0), 2, []),
        ("ss", "ssss", 0, 4, Bounds(2, 0), 0, ["old-0", "old-1"]),
        ("", "ssss", 0, 4, Bounds(1, 1), 1, ["old-0"]),
    ],
)
def test_next_step(new, old, draining, wanted, bounds, create, remove):
    """Worked steps; `remove` in the order of names."""
    step = next_step(replicas(new, "new"), replicas(old, "old"), draining, wanted, bounds)
    assert (step.create, sorted(each.name for each in step.remove)) == (create, remove)


@pytest.mark.parametrize(
    ("new", "old", "wanted", "bounds", "more", "expected"),
    [
        # A canary of one in four: three old ones stay.
        ("", "ssss", 4, SURGE, {"quota": 1, "keep": 3}, (1, [], 0)),
        ("s", "ssss", 4, SURGE, {"quota": 1, "keep": 3}, (0, ["old-0"], 0)),
        ("s", "sss", 4, SURGE, {"quota": 1, "keep": 3}, (0, [], 0)),
        # One that stands beside the only replica.
        ("s", "s", 1, SURGE, {"quota": 1, "keep": 1}, (0, [], 0)),
        # New pods fail: no more of them, and what is missing is of the old revision.
        ("x", "s", 2, SURGE, {"quota": 1, "mend": True}, (0, [], 1)),
        ("x", "ss", 2, SURGE, {"quota": 1, "mend": True}, (0, [], 0)),
        ("x", "s.", 2, SURGE, {"quota": 1, "mend": True}, (0, [], 0)),
        ("x", "s..", 2, SURGE, {"quota": 1, "mend": True}, (0, ["old-1"], 0)),
        ("x", "s", 2, IN_PLACE, {"quota": 1, "mend": True}, (0, [], 0)),
        # Of three wanted replicas one can never run: it is not waited for.
        ("", "ss", 3, Bounds(1, 1, 0), {"quota": 0}, (0, [], 0)),
        ("", "ss", 3, Bounds(1, 1, 1), {"quota": 0}, (0, ["old-0"], 0)),
    ],
)
def test_steps_with_less_trust(new, old, wanted, bounds, more, expected):
    """A share for the new revision, old ones that stay, and gaps that are mended."""
    step = next_step(replicas(new, "new"), replicas(old, "old"), 0, wanted, bounds, **more)
    assert (step.create, [each.name for each in step.remove], step.mend) == expected


@pytest.mark.parametrize(
    ("spec", "bounds"),
    [
        ({}, Bounds(1, 0)),
        ({"strategy": "Surge", "maxSurge": 3}, Bounds(3, 0)),
        ({"strategy": "InPlace"}, Bounds(0, 1)),
        ({"strategy": "InPlace", "maxUnavailable": 2, "maxSurge": 4}, Bounds(0, 2)),
        ({"maxSurge": 0, "maxUnavailable": 0}, Bounds(1, 0)),
        ({"maxSurge": 0, "maxUnavailable": 1}, Bounds(0, 1)),
    ],
)
def test_bounds(spec, bounds):
    """In place is no surge; and something must always be able to move."""
    assert Bounds.of(RolloutSpec.model_validate(spec)) == bounds
