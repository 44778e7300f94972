"""Measures the operator: so many InferenceServices at once, until all are Ready, and what they cost when idle.

Each size runs on a cluster of its own, made by `e2e.cluster` and removed again, with pods that a test double of the
kubelet makes Ready on nodes that are API objects only. API server, etcd, scheduler, controllers and operator are real.
"""

import argparse
import asyncio
import datetime as dt
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from e2e.bench_operator import load, report
from e2e.bench_operator.api import BenchApi
from e2e.bench_operator.figures import (
    Reading,
    bucket_quantile,
    cpu_seconds,
    quantile,
    read_exposition,
    resident_bytes,
)
from e2e.bench_operator.report import Result
from e2e.bench_operator.stage import ROOT, Stage, staged
from e2e.cluster.errors import ClusterError
from e2e.cluster.progress import Progress

RESULTS = Path(__file__).parent / "results"
LAST_STATUS_S = 3.0
"""Seconds after the last service became Ready in which the operator's last words are still counted."""


def parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(prog="python -m e2e.bench_operator", description=__doc__, formatter_class=raw)
    top.add_argument(
        "--services", type=int, nargs="+", default=[100, 1000, 3000], metavar="N", help="sizes (default: 100 1000 3000)"
    )
    top.add_argument("--timeout", type=float, default=900, help="seconds in which all must be Ready (%(default)g)")
    top.add_argument("--settle", type=float, default=75, help="seconds between that and the idle time (%(default)g)")
    top.add_argument("--idle", type=float, default=60, help="seconds over which idleness is measured (%(default)g)")
    top.add_argument("--out", metavar="NAME", help=f"write NAME.md and NAME.json to {RESULTS.relative_to(ROOT)}")
    top.add_argument("--logs", type=Path, help="folder for the logs of operator and double (default: a temporary one)")
    top.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="py-spy's record of the operator until all are Ready, and FILE with .idle",
    )
    return top


def main(argv: list[str] | None = None) -> int:
    """Run the sizes, print and write the record; exit status 1 when something failed, 2 for bad arguments."""
    top = parser()
    arguments = top.parse_args(argv)
    if bad := [size for size in arguments.services if not 1 <= size <= 10_000]:
        top.error(f"--services: must be 1 to 10000, got {bad[0]}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that all is removed again
    progress, load_before = Progress(), os.getloadavg()[0]
    results, version = [], ""
    try:
        for size in arguments.services:
            with logs(arguments.logs) as folder, staged(size, folder, progress) as stage:
                results.append(asyncio.run(measure(stage, size, arguments, progress)))
                version = stage.version
    except (ClusterError, TimeoutError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    command = " ".join(["python -m e2e.bench_operator", *(argv if argv is not None else sys.argv[1:])])
    setting = report.describe(version, commit(), command, dt.datetime.now(dt.UTC).date().isoformat(), load_before)
    text = report.to_markdown(setting, results)
    print(text)
    if arguments.out:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{arguments.out}.md").write_text(text)
        (RESULTS / f"{arguments.out}.json").write_text(report.to_json(setting, results))
    return 0 if all(each.ready == each.services for each in results) else 1


@contextmanager
def logs(folder: Path | None) -> Iterator[Path]:
    """The folder for logs; a temporary one goes when all is well."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="kvasir-bench-") as made:
        yield Path(made)


def commit() -> str:
    """The checkout's commit, with a plus where files differ from it."""
    git = ["git", "-C", str(ROOT)]
    shown = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain", "operator"], capture_output=True, text=True, check=False)
    return shown.stdout.strip() + ("+" if changed.stdout.strip() else "")


async def measure(stage: Stage, size: int, arguments: argparse.Namespace, progress: Progress) -> Result:
    """One size on a stage of its own."""
    async with BenchApi.opened(stage.layout.kubeconfig) as api:
        await load.prepare(api)
        resident_before, before = resident_bytes(stage.operator), read_exposition(stage.metrics)
        cpu_before = _cpu(stage)
        with progress.step(f"{size} services until all are Ready") as step, profiled(stage, arguments.profile):
            times = await load.apply(api, size, arguments.timeout, step)
            step.note = f"{times.all_ready_s:.1f} s"
            cpu_after = _cpu(stage)
            await asyncio.sleep(LAST_STATUS_S)
        busy = read_exposition(stage.metrics).since(before)
    with progress.step(f"idle: {arguments.settle:g} s to settle, {arguments.idle:g} s measured") as step:
        await asyncio.sleep(arguments.settle)
        with profiled(stage, arguments.profile and arguments.profile.with_suffix(".idle")):
            idle, idle_cpu, window = await _idle(stage, arguments.idle)
        step.note = f"{idle_cpu * 100:.2f} % of a core"
    used = {name: cpu_after[name] - spent for name, spent in cpu_before.items() if name in cpu_after}
    return Result(
        services=size,
        ready=len(times.ready),
        created_s=times.all_created_s,
        all_ready_s=times.all_ready_s,
        ready_p50_s=quantile(times.latencies_s, 0.5),
        ready_p99_s=quantile(times.latencies_s, 0.99),
        api_calls=dict(busy.requests),
        failed_calls=dict(busy.failed),
        turns=int(busy.turns),
        reconcile_p50_s=bucket_quantile(busy.reconciles, 0.5),
        reconcile_p99_s=bucket_quantile(busy.reconciles, 0.99),
        operator_cpu_s=used.pop("operator"),
        cluster_cpu_s=used,
        resident_before=resident_before,
        resident_after=resident_bytes(stage.operator),
        idle_window_s=window,
        idle_cpu=idle_cpu,
        idle_scrapes_per_s=idle.scrapes / window,
        idle_api_calls_per_s=sum(idle.requests.values()) / window,
    )


async def _idle(stage: Stage, seconds: float) -> tuple[Reading, float, float]:
    """What the operator does while nothing happens: counters, share of a core, seconds."""
    before, cpu, began = read_exposition(stage.metrics), cpu_seconds(stage.operator), time.monotonic()
    await asyncio.sleep(seconds)
    window = time.monotonic() - began
    share = (cpu_seconds(stage.operator) - cpu) / window
    return read_exposition(stage.metrics).since(before), share, window


def _cpu(stage: Stage) -> dict[str, float]:
    """CPU seconds so far of the operator, this program and each part of the cluster."""
    pids = {"operator": stage.operator, "kubelet's double": stage.double, "client": os.getpid(), **stage.components}
    return {name: cpu_seconds(pid) for name, pid in pids.items()}


@contextmanager
def profiled(stage: Stage, file: Path | None) -> Iterator[None]:
    """Let py-spy watch the operator meanwhile, if a file is given."""
    if file is None:
        yield
        return
    record = ["py-spy", "record", "--pid", str(stage.operator), "--output", str(file), "--format", "raw", "--duration"]
    with subprocess.Popen([*record, "3600", "--rate", "100"]) as process:
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
