"""A run's whole report, built once from what was measured; `render.py` shows and writes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.peers.agreement import Agreement, agreement_table
from benchmarks.peers.bounds import Bounds, mean_rates
from benchmarks.peers.goals import Goal, goals
from benchmarks.peers.session import Session
from benchmarks.peers.shape import LlamaShape
from benchmarks.peers.subjects import KVASIR, Subject
from benchmarks.peers.summary import Summary
from benchmarks.peers.tables import (
    Table,
    goals_table,
    latency_table,
    machine_table,
    percent,
    prefix_table,
    throughput_table,
)
from benchmarks.peers.workload import Sizes

BUSY: Final = 0.05
"""Share of the cores' time that others may take before a report says that its figures are doubtful."""


@dataclass(frozen=True)
class Origin:
    """Where and how the figures came to be, each as a line of text."""

    hardware: str
    commit: str
    command: str
    date: str
    model: str


@dataclass(frozen=True)
class Report:
    origin: Origin
    session: Session
    bounds: Bounds | None
    goals: Sequence[Goal]
    agreements: Sequence[Agreement]
    tables: Sequence[Table]
    notes: Sequence[str]


def build_report(
    origin: Origin,
    session: Session,
    subjects: Sequence[Subject],
    agreements: Sequence[Agreement],
    shape: LlamaShape,
    sizes: Sizes,
) -> Report:
    rates = mean_rates(session.machine) if session.machine else None
    bounds = Bounds.of(shape, sizes, rates) if rates else None
    reached = goals(session.samples)
    tables = [*_scenario_tables(session, subjects, bounds, sizes), goals_table(reached)]
    if rates:
        spread = [Summary.of([getattr(one, name) for one in session.machine]) for name in ("gemm_flops", "read_bytes")]
        tables.append(machine_table(rates, (spread[0], spread[1])))
    if agreements:
        tables.append(agreement_table(agreements, KVASIR))
    notes = _notes(session, subjects, agreements, sizes)
    return Report(origin, session, bounds, reached, agreements, tables, notes)


def _scenario_tables(session: Session, subjects: Sequence[Subject], bounds: Bounds | None, sizes: Sizes) -> list[Table]:
    done = {(sample.subject, sample.scenario) for sample in session.samples.entries}
    in_order = {
        scenario: [subject.name for subject in subjects if (subject.name, scenario) in done]
        for scenario in ("throughput", "latency", "int8", "prefix")
    }
    tables = []
    if in_order["throughput"]:
        title = f"Throughput: {sizes.num_prompts} requests of {sizes.input_len} in, {sizes.output_len} out"
        tables.append(throughput_table(session.samples, in_order["throughput"], bounds, title))
    single = [(name, scenario) for scenario in ("latency", "int8") for name in in_order[scenario]]
    if single:
        title = f"Latency: 1 request of {sizes.latency_input_len} in, {sizes.latency_output_len} out"
        tables.append(latency_table(session.samples, single, bounds, title))
    if in_order["prefix"]:
        title = (
            f"Prefix cache: first tokens of {sizes.num_prompts} prompts of {sizes.input_len}, then of the same again"
        )
        tables.append(prefix_table(session.samples, in_order["prefix"], title))
    return tables


def _notes(session: Session, subjects: Sequence[Subject], agreements: Sequence[Agreement], sizes: Sizes) -> list[str]:
    notes = [f"{name} failed: {why.partition(chr(10))[0]}" for name, why in session.failures.items()]
    foreign = session.samples.foreign_cpu()
    if foreign > BUSY:
        notes.append(
            f"Doubtful: other programs took up to {percent(foreign)} of the machine's CPU time during a measurement."
        )
    if sizes != Sizes():
        notes.append("The goals are stated for the default sizes, not for this run's.")
    notes += [
        f"{one.engine}: only {percent(one.near_ties)} of its tokens are float32's choice or a near-tie of it: "
        "it may not compute the same model, so do not compare its speed."
        for one in agreements
        if not one.plausible
    ]
    notes += [f"{subject.name}: {subject.note}." for subject in subjects if subject.note]
    return notes
