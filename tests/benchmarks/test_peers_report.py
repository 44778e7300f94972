"""The tables, and the forms in which they are written."""

import io
import json
from pathlib import Path

from rich.console import Console

from benchmarks.peers import render
from benchmarks.peers.agreement import agreement_table, common_prefix, judge
from benchmarks.peers.bounds import Bounds, MachineRates, mean_rates
from benchmarks.peers.metrics import Sample, Samples
from benchmarks.peers.report import Origin, Report, build_report
from benchmarks.peers.session import Session
from benchmarks.peers.shape import LLAMA_300M
from benchmarks.peers.subjects import subjects
from benchmarks.peers.tables import Table, latency_table, throughput_table
from benchmarks.peers.workload import Sizes

BOUNDS = Bounds(output_tokens_per_s=150.0, decode_ms=30.0, decode_ms_q8_0=16.0)
ORIGIN = Origin("two cores", "abc123", "python -m benchmarks.peers", "2024-06-01", "llama-0")


def _rates(subject: str, *rates: float) -> list[Sample]:
    return [
        Sample(subject, "throughput", index, {"output_tokens_per_s": rate, "elapsed_s": 1024 / rate}, 0.01)
        for index, rate in enumerate(rates)
    ]


def _steps(subject: str, scenario: str, step: float) -> Sample:
    values = {"decode_ms_per_token": step, "first_token_ms": 99.0, "output_tokens_per_s": 1000 / step}
    return Sample(subject, scenario, 0, values, 0.0)


def test_throughput_rows_hold_medians_ratios_and_the_share_of_the_bound() -> None:
    """The median of three rounds, beside Kvasir's median."""
    samples = Samples([*_rates("kvasir", 120.0, 128.0, 110.0), *_rates("vllm", 100.0, 90.0, 96.0)])
    table = throughput_table(samples, ["kvasir", "vllm"], BOUNDS, "Throughput")
    assert table.rows == (
        ("kvasir", "120.0", "110.0 - 128.0", "8.53", "1.00", "80 %"),
        ("vllm", "96.0", "90.0 - 100.0", "10.67", "1.25", "64 %"),
        ("machine's bound", "150.0", "-", "-", "-", "100 %"),
    )


def test_8_bit_engines_are_compared_with_each_other() -> None:
    """Q8_0 stands beside Kvasir's int8, not beside its bfloat16; less time is more speed."""
    samples = Samples([_steps("kvasir", "latency", 40.0), _steps("kvasir int8", "int8", 20.0)])
    samples.entries.append(_steps("llamacpp Q8_0", "int8", 25.0))
    pairs = [("kvasir", "latency"), ("kvasir int8", "int8"), ("llamacpp Q8_0", "int8")]
    table = latency_table(samples, pairs, BOUNDS, "Latency")
    assert [(row[0], row[1], row[-2], row[-1]) for row in table.rows[:3]] == [
        ("kvasir", "40.00", "1.00", "75 %"),
        ("kvasir int8", "20.00", "1.00", "80 %"),
        ("llamacpp Q8_0", "25.00", "1.25", "64 %"),
    ]


def test_the_bound_of_a_run_is_between_what_was_measured_around_it() -> None:
    """A machine's rates change within minutes: those before and after count alike."""
    assert mean_rates([MachineRates(4.0, 1.0), MachineRates(3.0, 2.0)]) == MachineRates(3.5, 1.5)


def test_outputs_agree_up_to_near_ties() -> None:
    """A regret of zero is float32's own choice; below a tenth of a deviation rounding decides."""
    judged = judge("vllm", [[0.0, 0.05], [0.0, 0.3]], [[1, 2, 3], [4, 5, 6]], [[1, 2, 9], [7, 5, 6]])
    assert (judged.highest, judged.near_ties, judged.worst_regret) == (0.5, 0.75, 0.3)
    assert (judged.first_tokens, judged.common_prefix) == (0.5, 1.0)
    assert not judged.plausible
    assert agreement_table([judged], "kvasir").rows == (("vllm", "50 %", "75 %", "0.30", "50 %", "1.0"),)


def test_without_a_reference_engines_are_judged_by_float32_alone() -> None:
    """Kvasir may not take part; the other engines are still checked."""
    judged = judge("vllm", [[0.0]], [[1]], None)
    assert (judged.first_tokens, judged.common_prefix, judged.plausible) == (None, None, True)


def test_a_common_prefix_ends_where_outputs_part() -> None:
    """What follows a different token says nothing."""
    assert common_prefix([1, 2, 3], [1, 9, 3]) == 1
    assert common_prefix([1, 2], [1, 2, 3]) == 2


def _report(session: Session) -> Report:
    chosen = subjects(2, Path("/cache"), zen=True)
    return build_report(ORIGIN, session, chosen, [], LLAMA_300M, Sizes())


def _session() -> Session:
    session = Session(machine=[MachineRates(470e9, 20e9)], versions={"vllm": "1.0"})
    session.samples.entries += [*_rates("kvasir", 120.0, 118.0), *_rates("vllm", 100.0, 101.0)]
    session.configurations["vllm"] = "dtype=bfloat16"
    return session


def test_a_report_shows_only_what_was_measured() -> None:
    """Scenarios and engines that did not run have no table and no row."""
    titles = [table.title for table in _report(_session()).tables]
    assert titles == ["Throughput: 16 requests of 256 in, 64 out", "Goals", "The machine"]


def test_a_busy_machine_and_a_failed_engine_are_told() -> None:
    """Whoever reads the figures must know that they are doubtful or lack somebody."""
    session = _session()
    session.samples.entries.append(Sample("vllm", "throughput", 2, {"output_tokens_per_s": 40.0}, 0.31))
    session.failures["llamacpp"] = "llama_decode failed with status 1\nmore"
    notes = _report(session).notes
    assert any(note.startswith("Doubtful: other programs took up to 31 %") for note in notes)
    assert "llamacpp failed: llama_decode failed with status 1" in notes


def test_markdown_holds_origin_tables_and_configurations() -> None:
    """A reader can repeat the run from the file alone."""
    text = render.markdown(_report(_session()))
    assert "- Command: `python -m benchmarks.peers`" in text
    assert "- Versions: vllm 1.0" in text
    assert "Medians over 2 interleaved rounds" in text
    assert "| vllm | 100.5 | 100.0 - 101.0 | 10.19 | 1.18 | 69 % |" in text
    assert "- vllm: dtype=bfloat16" in text


def test_json_holds_every_sample_and_verdict() -> None:
    """Everything but the engines' outputs, for programs to read."""
    content = json.loads(render.as_json(_report(_session())))
    assert len(content["samples"]) == 4
    assert content["goals"][0]["met"] is True
    assert content["goals"][3]["met"] is None
    assert "outputs" not in content


def test_both_forms_are_written(tmp_path: Path) -> None:
    """Under one name, for people and for programs."""
    paths = render.write(_report(_session()), tmp_path / "results", "peers_cpu_202406")
    assert [path.name for path in paths] == ["peers_cpu_202406.md", "peers_cpu_202406.json"]
    assert all(path.read_text() for path in paths)


def test_the_terminal_shows_every_cell() -> None:
    """Figures are aligned to the right, names never broken."""
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(render.rich_table(Table("T", ("engine", "tokens/s"), (("llamacpp Q8_0", "96.0"),))))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "llamacpp Q8_0" in shown
    assert "96.0" in shown
