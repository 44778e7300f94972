"""What a run found, as JSON for programs and as Markdown for people."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version as installed_version
from pathlib import Path


@dataclass(frozen=True)
class Result:
    """Figures of one size. Times in seconds, memory in bytes, CPU in seconds or as a share of one core."""

    services: int
    ready: int
    """How many became Ready in the time that was given; times are those of these."""
    created_s: float
    all_ready_s: float
    ready_p50_s: float
    ready_p99_s: float
    api_calls: dict[str, int]
    """Of the operator, from the first creation until its last status, by `VERB kind`."""
    failed_calls: dict[str, int]
    turns: int
    reconcile_p50_s: float
    reconcile_p99_s: float
    operator_cpu_s: float
    cluster_cpu_s: dict[str, float]
    """CPU that each program of the cluster took meanwhile."""
    resident_before: int
    resident_after: int
    idle_window_s: float
    idle_cpu: float
    """Share of one core."""
    idle_scrapes_per_s: float
    idle_api_calls_per_s: float

    @property
    def calls_per_service(self) -> float:
        return sum(self.api_calls.values()) / self.services

    @property
    def memory_per_service(self) -> float:
        return (self.resident_after - self.resident_before) / self.services


@dataclass(frozen=True)
class Setting:
    """On what it was measured."""

    processor: str
    cores: int
    kubernetes: str
    python: str
    commit: str
    command: str
    date: str
    load_before: float
    """Load average of the machine when the run began: other work on it makes times longer."""


def describe(kubernetes: str, commit: str, command: str, date: str, load_before: float) -> Setting:
    """The setting of this machine."""
    cores = len(os.sched_getaffinity(0))
    return Setting(processor(), cores, kubernetes, platform.python_version(), commit, command, date, load_before)


def processor() -> str:
    """The processor as Linux names it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def to_json(setting: Setting, results: Sequence[Result]) -> str:
    content = {"setting": asdict(setting), "libraries": libraries(), "results": [asdict(each) for each in results]}
    return json.dumps(content, indent=2) + "\n"


def libraries() -> dict[str, str]:
    return {name: installed_version(name) for name in ("kopf", "kubernetes", "aiohttp", "pydantic")}


COLUMNS = (
    "services",
    "all Ready",
    "Ready p50",
    "p99",
    "turn p50",
    "p99",
    "API calls",
    "memory",
    "operator CPU",
    "idle",
)
UNITS = ("", "s", "s", "s", "ms", "ms", "a service", "KiB a service", "ms a service", "% of a core")


def to_markdown(setting: Setting, results: Sequence[Result]) -> str:
    """The record: setting, one table over the sizes, and for each size who called and who computed."""
    lines = [
        "# The operator with many services",
        "",
        f"{setting.date}, {setting.processor}, {setting.cores} cores, Kubernetes {setting.kubernetes}, "
        f"Python {setting.python}, " + ", ".join(f"{name} {value}" for name, value in libraries().items()) + ", "
        f"commit {setting.commit}, load average before {setting.load_before:.2f}:",
        "",
        f"    {setting.command}",
        "",
        "etcd, API server, controllers, scheduler, the kubelet's double, client and operator share these cores.",
        "",
        row([f"{name} ({unit})" if unit else name for name, unit in zip(COLUMNS, UNITS, strict=True)]),
        row(["---"] * len(COLUMNS)),
        *(row(cells(each)) for each in results),
        "",
        *(line for each in results for line in detail(each)),
    ]
    return "\n".join(lines)


def cells(result: Result) -> list[str]:
    return [
        f"{result.services}" if result.ready == result.services else f"{result.ready} of {result.services}",
        f"{result.all_ready_s:.1f}",
        f"{result.ready_p50_s:.1f}",
        f"{result.ready_p99_s:.1f}",
        f"{result.reconcile_p50_s * 1e3:.1f}",
        f"{result.reconcile_p99_s * 1e3:.0f}",
        f"{result.calls_per_service:.1f}",
        f"{result.memory_per_service / 1024:.0f}",
        f"{result.operator_cpu_s / result.services * 1e3:.1f}",
        f"{result.idle_cpu * 100:.1f}",
    ]


def detail(result: Result) -> list[str]:
    """Where calls and CPU of one size went."""
    calls = ", ".join(f"{name} {count / result.services:.2f}" for name, count in ordered(result.api_calls))
    failed = ", ".join(f"{name} {count}" for name, count in ordered(result.failed_calls)) or "none"
    cpu = ", ".join(f"{name} {seconds:.1f}" for name, seconds in ordered(result.cluster_cpu_s) if seconds >= 0.1)
    memory = f"{mebibytes(result.resident_before)} before, {mebibytes(result.resident_after)} after"
    idle = f"{result.idle_scrapes_per_s:.1f} engines read and {result.idle_api_calls_per_s:.2f} API calls"
    return [
        f"## {result.services} services",
        "",
        f"- Created in {result.created_s:.1f} s; {result.turns / result.services:.1f} turns a service.",
        f"- API calls of the operator, a service: {calls}. Answered by an error, in all: {failed}.",
        f"- CPU seconds until all were Ready: operator {result.operator_cpu_s:.1f}, {cpu}.",
        f"- Resident memory of the operator: {memory}.",
        f"- Idle over {result.idle_window_s:.0f} s: {result.idle_cpu * 100:.2f} % of a core, {idle} a second.",
        "",
    ]


def mebibytes(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"


def ordered(values: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(values.items(), key=lambda item: -item[1])


def row(values: Sequence[str]) -> str:
    return "| " + " | ".join(values) + " |"
