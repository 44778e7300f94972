"""Courses as PNG: demand, replicas, KV use and TTFT over time, one line for each policy."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from kvasir_operator.scaling.simulator.report import MINUTE_S, Result, quantile


class PlotError(RuntimeError):
    """Nothing can be drawn here."""


def plot(results: Sequence[Result], objective: float, title: str, path: Path) -> None:
    """Draw the results' courses into a PNG. Raises PlotError where matplotlib is not installed."""
    try:
        import matplotlib as mpl  # noqa: PLC0415 - the operator itself does without
    except ImportError as error:
        raise PlotError("plots need matplotlib: pip install 'kvasir[simulator]', or leave --out away") from error
    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, (demand, replicas, kv_use, ttft) = plt.subplots(4, 1, figsize=(9, 9), sharex=True)
    first = results[0].course
    minutes = _means(first.times, first.demand)
    demand.plot([time / 60 for time, _ in minutes], [value for _, value in minutes], color="black", linewidth=0.8)
    for result in results:
        course = result.course
        times = [time / 60 for time in course.times]
        replicas.step(times, course.present, where="post", linewidth=0.9, label=result.label)
        use = _means(course.times, course.kv_use)
        kv_use.plot([time / 60 for time, _ in use], [100 * value for _, value in use], linewidth=0.8)
        worst = _by_minute(course.first_tokens)
        ttft.plot([time / 60 for time, _ in worst], [value for _, value in worst], linewidth=0.8)
    ttft.axhline(objective, color="grey", linestyle=":", linewidth=1)
    ttft.set_yscale("log")
    labels = ("prompt tokens/s", "replicas", "KV use, %", "TTFT p95, s")
    for axis, label in zip((demand, replicas, kv_use, ttft), labels, strict=True):
        axis.set_ylabel(label)
        axis.grid(visible=True, linewidth=0.3)
    replicas.legend(fontsize=7, loc="upper right")
    ttft.set_xlabel("minutes")
    demand.set_title(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=70)
    plt.close(figure)


def _means(times: Sequence[float], values: Sequence[float]) -> list[tuple[float, float]]:
    """Means of a minute each."""
    found: defaultdict[int, list[float]] = defaultdict(list)
    for time, value in zip(times, values, strict=True):
        found[int(time / MINUTE_S)].append(value)
    return [(minute * MINUTE_S, sum(each) / len(each)) for minute, each in sorted(found.items())]


def _by_minute(first_tokens: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    found: defaultdict[int, list[float]] = defaultdict(list)
    for arrival, seconds in first_tokens:
        found[int(arrival / MINUTE_S)].append(seconds)
    return [(minute * MINUTE_S, quantile(each)) for minute, each in sorted(found.items())]
