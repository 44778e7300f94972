"""What counts as a shortcoming of a server under load."""

import dataclasses
from typing import Any

import pytest

from benchmarks.serve_load import Round, shortcomings

GOOD = Round(2000, 0, 10.0, 2.0, 2.5, 3.0, 2.0, 2.5, 87.0, 400.0)


def test_a_good_server_has_none() -> None:
    """Memory may vary by 5 %, and the slowest client wait less than three times the median."""
    rounds = [GOOD, dataclasses.replace(GOOD, front_end_rss_mib=91.0, latency_max_s=5.9)]
    assert shortcomings(rounds) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"errors": 3}, "3 requests failed"),
        ({"latency_max_s": 6.0}, "round 2: a client waited 6.0 s, the median is 2.0 s"),
        ({"front_end_rss_mib": 92.0}, "front_end_rss_mib grew from 87.0 to 92.0"),
        ({"engine_rss_mib": 421.0}, "engine_rss_mib grew from 400.0 to 421.0"),
    ],
)
def test_each_shortcoming_is_told(change: dict[str, Any], told: str) -> None:
    """With its numbers, and alone."""
    assert shortcomings([GOOD, dataclasses.replace(GOOD, **change)]) == [told]
