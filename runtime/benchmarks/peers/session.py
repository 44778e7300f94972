"""Runs the rounds: every subject in turn, each in a process of its own, never two at a time."""

import importlib.metadata
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.peers import kvasir, processes
from benchmarks.peers.bounds import Bounds, MachineRates, mean_rates, share_of_bound
from benchmarks.peers.environments import OVERLAY
from benchmarks.peers.errors import BenchmarkError
from benchmarks.peers.metrics import VALUES, Sample, Samples
from benchmarks.peers.preparation import Prepared, Say
from benchmarks.peers.processes import Finished
from benchmarks.peers.shape import LLAMA_300M
from benchmarks.peers.subjects import KVASIR, Subject, base_variables, kvasir_program
from benchmarks.peers.workers.protocol import Result, TokenIds, Workload
from benchmarks.peers.workload import RoundLoads, Sizes, round_loads


@dataclass(frozen=True)
class Plan:
    """What to run. `scratch` holds workloads, results and logs of the latest run."""

    subjects: tuple[Subject, ...]
    scenarios: tuple[str, ...]
    rounds: int
    sizes: Sizes
    threads: int
    seed: int
    vocabulary: int
    prepared: Prepared
    runtime: Path
    scratch: Path
    timeout_s: float


@dataclass
class Session:
    """What the rounds brought. A subject that failed is left out of later rounds, and `failures` says why."""

    samples: Samples = field(default_factory=Samples)
    machine: list[MachineRates] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    configurations: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    prompts: list[TokenIds] = field(default_factory=list)
    outputs: dict[str, list[TokenIds]] = field(default_factory=dict)


def run_rounds(plan: Plan, say: Say) -> Session:
    """Interleave: every subject in turn, and that again for each round; the machine's rates around Kvasir's runs."""
    session = Session()
    plan.scratch.mkdir(parents=True, exist_ok=True)
    for index in range(plan.rounds):
        loads = round_loads(plan.seed, index, plan.vocabulary, plan.sizes)
        for subject in plan.subjects:
            if subject.name not in session.failures:
                _run_subject(plan, session, subject, index, loads, say)
    return session


def scenarios_of(subject: Subject, chosen: tuple[str, ...]) -> dict[str, str]:
    """Which of the chosen scenarios a subject takes part in, and what its processes measure for each."""
    return {scenario: subject.scenarios[scenario] for scenario in chosen if scenario in subject.scenarios}


def _run_subject(plan: Plan, session: Session, subject: Subject, index: int, loads: RoundLoads, say: Say) -> None:
    scenarios = scenarios_of(subject, plan.scenarios)
    bounds: dict[str, Bounds] = {}
    try:
        if subject.peer == KVASIR:
            result, foreign, bounds = _run_kvasir(plan, session, subject, scenarios, index, loads, say)
        else:
            result, foreign = _run_library(plan, subject, scenarios, index, loads)
    except BenchmarkError as error:
        session.failures[subject.name] = str(error)
        say(_line(plan, index, subject.name, f"failed: {error}"))
        return
    session.versions.update(result.versions)
    session.configurations[subject.name] = result.configuration
    for scenario, measured in scenarios.items():
        values = VALUES[measured](result.seconds[measured], loads.loads[measured])
        if measured in bounds and (share := share_of_bound(values, bounds[measured])):
            values["of_bound"] = share
        session.samples.entries.append(Sample(subject.name, scenario, index, values, foreign[measured]))
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        say(_line(plan, index, subject.name, f"{scenario}: {shown} (others used {foreign[measured]:.0%} of the CPU)"))
    if index == 0 and "throughput" in result.outputs:
        session.prompts = loads.loads["throughput"].prompts
        session.outputs[subject.name] = result.outputs["throughput"]


def _run_library(
    plan: Plan, subject: Subject, scenarios: dict[str, str], index: int, loads: RoundLoads
) -> tuple[Result, dict[str, float]]:
    """One process loads the engine once and measures all its scenarios."""
    stem = _stem(plan, subject.name, index)
    request, answer = stem.with_suffix(".workload.json"), stem.with_suffix(".result.json")
    model = plan.prepared.ggufs[subject.gguf] if subject.gguf else plan.prepared.model
    measured = list(dict.fromkeys(scenarios.values()))
    Workload(str(model), plan.threads, measured, loads.loads, loads.warmups, dict(subject.options)).write(request)
    python = plan.prepared.pythons[subject.environment.name] if subject.environment else Path(sys.executable)
    finished = _start(plan, [str(python), "-m", subject.worker, str(request), str(answer)], subject, stem)
    return Result.read(answer), dict.fromkeys(measured, finished.foreign_cpu)


def _run_kvasir(
    plan: Plan,
    session: Session,
    subject: Subject,
    scenarios: dict[str, str],
    index: int,
    loads: RoundLoads,
    say: Say,
) -> tuple[Result, dict[str, float], dict[str, Bounds]]:
    """One process a scenario, as its command line offers it; the machine is measured before and after each."""
    versions = {"kvasir": importlib.metadata.version("kvasir"), "torch": importlib.metadata.version("torch")}
    configuration = f"weights={subject.weights}, threads={plan.threads}, otherwise its defaults"
    result = Result(subject.name, versions, configuration, load_s=0.0)
    foreign, bounds = {}, {}
    before = _measure_machine(plan, session, index, say)
    for measured in dict.fromkeys(scenarios.values()):
        stem = _stem(plan, f"{subject.name}-{measured}", index)
        load, prompts_file = loads.loads[measured], stem.with_suffix(".prompts.json")
        prompts_file.write_text(json.dumps(kvasir.bench_prompts(measured, load)), encoding="utf-8")
        model = str(plan.prepared.model)
        command = kvasir.bench_command(
            kvasir_program(), measured, model, load, str(prompts_file), subject.weights, plan.threads
        )
        finished = _start(plan, command, subject, stem)
        after = _measure_machine(plan, session, index, say)
        report = kvasir.parse_report(measured, finished.stdout)
        result.seconds[measured], result.outputs[measured] = report.seconds, report.outputs
        foreign[measured] = finished.foreign_cpu
        if subject.weights == "bf16":
            bounds[measured] = Bounds.of(LLAMA_300M, plan.sizes, mean_rates([before, after]))
        before = after
    return result, foreign, bounds


def _measure_machine(plan: Plan, session: Session, index: int, say: Say) -> MachineRates:
    stem = _stem(plan, "machine", index)
    answer = stem.with_suffix(".result.json")
    worker = [sys.executable, "-m", "benchmarks.peers.workers.machine"]
    variables = {**base_variables(plan.runtime), "OMP_NUM_THREADS": str(plan.threads)}
    command = [*worker, str(answer), "--threads", str(plan.threads)]
    processes.run(command, variables, stem.with_suffix(".log"), plan.timeout_s)
    found = json.loads(answer.read_text(encoding="utf-8"))
    rates = MachineRates(found["gemm_flops"], found["read_bytes"])
    session.machine.append(rates)
    say(_line(plan, index, "machine", f"{rates.gemm_flops / 1e9:.0f} GFLOP/s, {rates.read_bytes / 1e9:.1f} GB/s"))
    return rates


def _start(plan: Plan, command: list[str], subject: Subject, stem: Path) -> Finished:
    variables = {**base_variables(plan.runtime), **subject.variables}
    if subject.overlay and subject.environment:
        overlay = plan.prepared.pythons[subject.environment.name].parent.parent / OVERLAY
        variables["PYTHONPATH"] += f":{overlay}"
    return processes.run(command, variables, stem.with_suffix(".log"), plan.timeout_s)


def _stem(plan: Plan, name: str, index: int) -> Path:
    return plan.scratch / f"{name.replace(' ', '-')}-{index + 1}"


def _line(plan: Plan, index: int, name: str, text: str) -> str:
    return f"round {index + 1}/{plan.rounds} {name}: {text}"
