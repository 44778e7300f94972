"""Figures from what was read: expositions of the operator's metrics, and the kernel's counts of CPU and memory."""

import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

RECONCILE: Final = "kvasir_operator_reconcile_seconds"
API_REQUESTS: Final = "kvasir_operator_api_requests_total"
SCRAPES: Final = "kvasir_operator_scrapes_total"
TICKS: Final = os.sysconf("SC_CLK_TCK")
PAGE: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Reading:
    """The operator's counters at one moment."""

    reconciles: dict[float, float]
    """Turns by the upper bound of their time in seconds, cumulated, as in the exposition."""
    requests: Counter[str]
    """Requests to the API server by `VERB kind`."""
    failed: Counter[str]
    """Those that were answered by 400 or more, or by nothing, by `VERB kind code`."""
    scrapes: float

    def since(self, before: "Reading") -> "Reading":
        """What happened between two readings."""
        buckets = {bound: count - before.reconciles.get(bound, 0.0) for bound, count in self.reconciles.items()}
        scrapes = self.scrapes - before.scrapes
        return Reading(buckets, self.requests - before.requests, self.failed - before.failed, scrapes)

    @property
    def turns(self) -> float:
        return self.reconciles.get(math.inf, 0.0)


def read_exposition(text: str) -> Reading:
    """The counters that matter from the text of `/metrics`."""
    buckets: dict[float, float] = {}
    requests: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    scrapes = 0.0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == f"{RECONCILE}_bucket":
                buckets[float(sample.labels["le"])] = sample.value
            elif sample.name == API_REQUESTS:
                verb, kind, code = (sample.labels[key] for key in ("verb", "kind", "code"))
                requests[f"{verb} {kind}"] += int(sample.value)
                if not "200" <= code < "400":
                    failed[f"{verb} {kind} {code}"] += int(sample.value)
            elif sample.name == SCRAPES:
                scrapes += sample.value
    return Reading(buckets, requests, failed, scrapes)


def bucket_quantile(buckets: dict[float, float], share: float) -> float:
    """A quantile of a cumulated histogram, as Prometheus interpolates it; NaN of an empty one.

    >>> bucket_quantile({0.1: 50.0, 0.2: 100.0, math.inf: 100.0}, 0.75)
    0.15
    """
    total = buckets.get(math.inf, 0.0)
    if not total:
        return math.nan
    rank, low, below = share * total, 0.0, 0.0
    for bound, count in sorted(buckets.items()):
        if count >= rank:
            return low if math.isinf(bound) else round(low + (bound - low) * (rank - below) / (count - below), 6)
        low, below = bound, count
    return low


def quantile(values: Iterable[float], share: float) -> float:
    """The nearest rank; NaN of nothing.

    >>> quantile([4, 1, 3, 2], 0.5)
    2
    """
    ordered: Sequence[float] = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, user and system, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
