"""The side-by-side tables, as text cells: rendered for the terminal and as Markdown elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.peers.bounds import Bounds, MachineRates
from benchmarks.peers.goals import Goal
from benchmarks.peers.metrics import Samples
from benchmarks.peers.summary import Summary, ratio

NOT_MEASURED = "-"


@dataclass(frozen=True)
class Table:
    """The first column is text, the others are figures."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def throughput_table(samples: Samples, subjects: Sequence[str], bounds: Bounds | None, title: str) -> Table:
    mine = samples.summary("kvasir", "throughput", "output_tokens_per_s")
    rows: list[tuple[str, ...]] = []
    for subject in subjects:
        rate = samples.summary(subject, "throughput", "output_tokens_per_s")
        elapsed = samples.summary(subject, "throughput", "elapsed_s")
        paired = samples.summary(subject, "throughput", "of_bound")
        share = rate.median / bounds.output_tokens_per_s if bounds and rate else None
        rows.append(
            (subject, median(rate), extent(rate), median(elapsed, 2), number(ratio(mine, rate)), _share(paired, share))
        )
    if bounds:
        rows.append(("machine's bound", f"{bounds.output_tokens_per_s:.1f}", *(NOT_MEASURED,) * 3, "100 %"))
    return Table(
        title, ("engine", "output tokens/s", "min - max", "seconds", "Kvasir is … times it", "of bound"), tuple(rows)
    )


def latency_table(samples: Samples, subjects: Sequence[tuple[str, str]], bounds: Bounds | None, title: str) -> Table:
    """`subjects` are pairs of a subject and its scenario: `latency` in bf16 or `int8`, against the like of Kvasir."""
    rows: list[tuple[str, ...]] = []
    for subject, scenario in subjects:
        mine = samples.summary("kvasir int8" if scenario == "int8" else "kvasir", scenario, "decode_ms_per_token")
        step = samples.summary(subject, scenario, "decode_ms_per_token")
        first = samples.summary(subject, scenario, "first_token_ms")
        rate = samples.summary(subject, scenario, "output_tokens_per_s")
        share = None if bounds is None or step is None else _decode_bound(bounds, scenario) / step.median
        paired = samples.summary(subject, scenario, "of_bound")
        cells = (median(step, 2), extent(step, 2), median(first), median(rate), number(ratio(step, mine)))
        rows.append((subject, *cells, _share(paired, share)))
    if bounds:
        rows.append(("bound, bf16", f"{bounds.decode_ms:.2f}", *(NOT_MEASURED,) * 4, "100 %"))
        rows.append(("bound, Q8_0's bytes", f"{bounds.decode_ms_q8_0:.2f}", *(NOT_MEASURED,) * 4, "100 %"))
    columns = ("ms per token", "min - max", "first token ms", "tokens/s in all", "Kvasir is … times it", "of bound")
    return Table(title, ("engine", *columns), tuple(rows))


def prefix_table(samples: Samples, subjects: Sequence[str], title: str) -> Table:
    rows: list[tuple[str, ...]] = []
    for subject in subjects:
        first, again, speedup = (
            samples.summary(subject, "prefix", metric) for metric in ("first_pass_s", "second_pass_s", "speedup")
        )
        rows.append((subject, median(first, 2), median(again, 3), median(speedup), extent(speedup)))
    return Table(title, ("engine", "first time, s", "again, s", "times sooner", "min - max"), tuple(rows))


def machine_table(rates: MachineRates, spread: tuple[Summary, Summary]) -> Table:
    gemm, read = spread
    return Table(
        "The machine",
        ("bound", "mean", "min - max"),
        (
            ("bf16 matrix products, GFLOP/s", f"{rates.gemm_flops / 1e9:.0f}", _scaled(gemm, 1e9)),
            ("reads from DRAM, GB/s", f"{rates.read_bytes / 1e9:.1f}", _scaled(read, 1e9)),
        ),
    )


def goals_table(reached: Sequence[Goal]) -> Table:
    rows = tuple((goal.name, number(goal.target), number(goal.actual), _verdict(goal)) for goal in reached)
    return Table("Goals", ("goal", "at least", "reached", "met"), rows)


def median(summary: Summary | None, digits: int = 1) -> str:
    return f"{summary.median:.{digits}f}" if summary else NOT_MEASURED


def extent(summary: Summary | None, digits: int = 1) -> str:
    return f"{summary.lowest:.{digits}f} - {summary.highest:.{digits}f}" if summary else NOT_MEASURED


def number(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.2f}"


def percent(share: float | None) -> str:
    return NOT_MEASURED if share is None else f"{100 * share:.0f} %"


def _share(paired: Summary | None, overall: float | None) -> str:
    """Of the bound just then where that is known, else of the run's."""
    return percent(paired.median if paired else overall)


def _decode_bound(bounds: Bounds, scenario: str) -> float:
    return bounds.decode_ms_q8_0 if scenario == "int8" else bounds.decode_ms


def _scaled(summary: Summary, unit: float) -> str:
    return f"{summary.lowest / unit:.1f} - {summary.highest / unit:.1f}"


def _verdict(goal: Goal) -> str:
    return {True: "yes", False: "no", None: "not measured"}[goal.met]
