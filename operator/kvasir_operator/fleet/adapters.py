"""Adapters over all replicas: which set each engine is told, when it is told again, and what became of each.

What an engine was told it repeats by a tag, so nothing has to be remembered here: a process that is new, or that
somebody else talked to, has another tag and is told again. How often and when an adapter failed is the engine's
knowledge too.

| the engine says                           | then                                       |
|-------------------------------------------|--------------------------------------------|
| nothing, or that it serves no adapters    | leave it                                   |
| that it was told another set than its own | tell it                                    |
| that one failed, whose wait is over       | tell it again, which tries what failed     |
| anything else                             | leave it, until a wait is over             |
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from kvasir_operator.api.model import AdapterSpec
from kvasir_operator.api.status import AdapterStatus
from kvasir_operator.resources.adapter_files import engine_uri
from kvasir_operator.resources.sources import check_source
from kvasir_operator.settings import Settings
from kvasir_runtime.contract.admin_api import AdapterReport, AdapterReports, AdapterSet, WantedAdapter

RETRY_BASE_S: Final = 10.0
"""Wait after the first failure of an adapter; doubled each time."""
RETRY_LIMIT_S: Final = 300.0
"""Longest such wait: a source that is mended is noticed in five minutes."""
_TAG_LENGTH: Final = 16


@dataclass(frozen=True, slots=True)
class AdapterWish:
    """One adapter of a spec. `refused` is what the operator's settings say against its source; empty: nothing."""

    wanted: WantedAdapter
    refresh_s: float | None = None
    refused: str = ""

    @property
    def name(self) -> str:
        return self.wanted.name


def wishes_of(adapters: Iterable[AdapterSpec], settings: Settings) -> tuple[AdapterWish, ...]:
    """The adapters of a spec, as engines are asked for them."""
    return tuple(_wish(index, adapter, settings) for index, adapter in enumerate(adapters))


def _wish(index: int, adapter: AdapterSpec, settings: Settings) -> AdapterWish:
    problems = check_source(adapter.source, settings, f"spec.adapters[{index}].source")
    wanted = WantedAdapter(
        name=adapter.name,
        uri=engine_uri(adapter.source),
        digest=adapter.source.sha256,
        pinned=adapter.pinned,
        secret=adapter.source.secret_name or "",
    )
    interval = adapter.refresh_interval
    return AdapterWish(wanted, interval.seconds if interval is not None else None, "; ".join(map(str, problems)))


def version_at(wish: AdapterWish, annotation: str, now: datetime) -> str:
    """What tells one look at the source from the next: the annotation, and the number of the interval.

    Every replica and every operator finds the same number, so that all look at the same time and none looks twice.
    """
    if wish.refresh_s is None:
        return annotation
    return f"{annotation}#{int((now.timestamp() + _offset(wish)) // wish.refresh_s)}"


def next_look(wishes: Iterable[AdapterWish], now: datetime) -> datetime | None:
    """When the next interval of any of them begins."""
    waits = [
        wish.refresh_s - (now.timestamp() + _offset(wish)) % wish.refresh_s
        for wish in wishes
        if wish.refresh_s is not None and not wish.refused
    ]
    return now + timedelta(seconds=min(waits)) if waits else None


def _offset(wish: AdapterWish) -> float:
    """Spreads the intervals of different adapters, so that not all sources are asked in the same second."""
    digest = hashlib.sha256(wish.wanted.uri.encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 * (wish.refresh_s or 0.0)


def wanted_set(wishes: Iterable[AdapterWish], annotation: str, now: datetime) -> AdapterSet:
    """The set to tell an engine, with a tag that is the same for the same set."""
    adapters = [
        wish.wanted.model_copy(update={"version": version_at(wish, annotation, now)})
        for wish in wishes
        if not wish.refused
    ]
    content = AdapterSet(adapters=adapters).model_dump_json()
    return AdapterSet(adapters=adapters, tag=hashlib.sha256(content.encode()).hexdigest()[:_TAG_LENGTH])


def retry_at(report: AdapterReport, now: datetime) -> datetime:
    """When an adapter that failed is tried again: after 10 s, 20 s, 40 s … 300 s."""
    wait = min(RETRY_LIMIT_S, RETRY_BASE_S * 2.0 ** min(report.failures - 1, 30))
    return now + timedelta(seconds=wait - report.failed_for_s)


def is_settled(report: AdapterReport) -> bool:
    """Whether it is known how an adapter fares: it is there, an earlier version of it is, or it failed."""
    return report.state == "loaded" or bool(report.digest) or report.failures > 0


def problem_with(report: AdapterReport, wanted: WantedAdapter) -> str:
    """Why an adapter does not count as served; empty: it does.

    An engine that says that it serves another content than the one that is wanted is not believed.
    """
    if wanted.digest is not None and report.digest and report.digest != wanted.digest and report.state == "loaded":
        return f"it has digest {report.digest}, expected {wanted.digest}"
    if report.state == "failed":
        return report.message or report.cause or "it failed"
    return "" if report.state == "loaded" else "it is loading"


@dataclass(frozen=True, slots=True)
class Told:
    """One replica as far as adapters go: the set that it is to have, and what it says; None: nothing is known."""

    pod: str
    wanted: AdapterSet
    reports: AdapterReports | None


def statuses(
    wishes: Sequence[AdapterWish], replicas: Sequence[Told], before: Iterable[AdapterStatus] = ()
) -> list[AdapterStatus]:
    """How each adapter fares over the replicas, in the order of the spec; `before` is what was told last.

    While one that failed is tried again, the reason stays.
    """
    known = {status.name: status for status in before}
    return [_status(wish, replicas, known.get(wish.name)) for wish in wishes]


def _status(wish: AdapterWish, replicas: Sequence[Told], before: AdapterStatus | None) -> AdapterStatus:
    if wish.refused:
        return AdapterStatus(name=wish.name, cause="SourceNotAllowed", message=wish.refused)
    holders = [_Holder.of(each, wish) for each in replicas if _is_wanted(wish.name, each.wanted)]
    updated = [each for each in holders if not each.problem]
    serving = [each for each in holders if each.serves]
    failed = sorted((each for each in holders if each.failed), key=lambda each: each.pod)
    retried = before is not None and before.cause and any(each.retried for each in holders)
    cause = _cause(failed[0]) if failed else before.cause if retried and before is not None else ""
    waiting = sorted((each for each in holders if each.problem), key=lambda each: each.pod)
    message = before.message if retried and not failed and before is not None else _message([*failed, *waiting])
    digests = Counter(each.digest for each in updated or serving)
    return AdapterStatus(
        name=wish.name,
        digest=next((digest for digest, _ in digests.most_common(1)), ""),
        ready_replicas=len(serving),
        updated_replicas=len(updated),
        replicas=len(holders),
        cause=cause,
        message=message,
    )


def _is_wanted(name: str, wanted: AdapterSet) -> bool:
    return any(one.name == name for one in wanted.adapters)


@dataclass(frozen=True, slots=True)
class _Holder:
    """One adapter on one replica that is to have it. `problem` is why it is not what it is to be."""

    pod: str
    report: AdapterReport | None
    told: bool
    problem: str

    @classmethod
    def of(cls, replica: Told, wish: AdapterWish) -> "_Holder":
        reports = replica.reports
        report = next((one for one in reports.adapters if one.name == wish.name), None) if reports is not None else None
        told = reports is not None and reports.tag == replica.wanted.tag
        problem = problem_with(report, wish.wanted) if report is not None and told else "not told yet"
        return cls(replica.pod, report, told, problem)

    @property
    def digest(self) -> str:
        return self.report.digest if self.report is not None else ""

    @property
    def serves(self) -> bool:
        """Whether requests are answered, by whichever version; what an engine is not believed it does not serve."""
        return bool(self.digest) and not (self.failed and self.report is not None and self.report.state == "loaded")

    @property
    def failed(self) -> bool:
        return self.told and bool(self.problem) and self.report is not None and self.report.state != "loading"

    @property
    def retried(self) -> bool:
        """Whether it is on its way after a failure."""
        return self.report is not None and self.report.state == "loading" and self.report.failures > 0


def _cause(failed: _Holder) -> str:
    return (failed.report.cause if failed.report is not None else "") or "AdapterInvalid"


def _message(holders: Sequence[_Holder]) -> str:
    """`tiny-x7k2p: rank must be at most 16, got 64 (raise --max-lora-rank); failed 3 times, digest 3f9c… goes on`."""
    if not holders:
        return ""
    first, report = holders[0], holders[0].report
    if report is None or not first.failed or report.state != "failed":
        return f"{first.pod}: {first.problem}"
    remedy = f" ({report.remedy})" if report.remedy else ""
    times = f"; failed {report.failures} times" if report.failures > 1 else ""
    serves = f"; the version before, {report.digest[:12]}, goes on" if report.digest else ""
    return f"{first.pod}: {first.problem}{remedy}{times}{serves}"
