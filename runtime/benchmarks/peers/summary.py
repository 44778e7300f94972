"""Medians over rounds, with their spread."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """Several rounds of one measurement, in the measurement's own unit."""

    median: float
    lowest: float
    highest: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Summary":
        """Raises ValueError without values: no measurement is not a measurement of zero."""
        if not values:
            msg = "a summary needs at least one value"
            raise ValueError(msg)
        return cls(statistics.median(values), min(values), max(values), len(values))

    @property
    def spread(self) -> float:
        """(highest - lowest) / median: 0.1 says that rounds differ by a tenth."""
        return (self.highest - self.lowest) / self.median if self.median else 0.0


def ratio(mine: Summary | None, theirs: Summary | None) -> float | None:
    """Ratio of two medians, None where either was not measured."""
    if mine is None or theirs is None or not theirs.median:
        return None
    return mine.median / theirs.median
