"""From wall-clock times to figures, bounds and goals."""

import pytest

from benchmarks.peers.bounds import (
    BatchSize,
    Bounds,
    MachineRates,
    decode_bound_ms,
    decode_step_bytes,
    prefill_s,
    share_of_bound,
    throughput_bound,
)
from benchmarks.peers.goals import goals
from benchmarks.peers.metrics import Sample, Samples, latency_values, prefix_values, throughput_values
from benchmarks.peers.shape import LLAMA_300M, LlamaShape
from benchmarks.peers.summary import Summary, ratio
from benchmarks.peers.workers.protocol import Load
from benchmarks.peers.workload import Sizes

TINY = LlamaShape(hidden=8, layers=2, heads=2, kv_heads=1, head_dim=4, ffn=16, vocabulary=100)
RATES = MachineRates(gemm_flops=470e9, read_bytes=20e9)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0], Summary(3.0, 3.0, 3.0, 1)),
        ([1.0, 9.0, 2.0], Summary(2.0, 1.0, 9.0, 3)),
        ([4.0, 1.0, 2.0, 3.0], Summary(2.5, 1.0, 4.0, 4)),
    ],
)
def test_a_summary_holds_median_and_spread(values: list[float], expected: Summary) -> None:
    """The middle of the rounds, the mean of the two middle ones when they are even."""
    assert Summary.of(values) == expected


def test_no_measurement_is_not_zero() -> None:
    """Without values there is no summary, and what misses one side has no ratio."""
    with pytest.raises(ValueError, match="at least one value"):
        Summary.of([])
    assert ratio(None, Summary.of([1.0])) is None
    assert ratio(Summary.of([1.0]), None) is None
    assert ratio(Summary.of([3.0]), Summary.of([2.0])) == 1.5


def test_figures_come_from_times() -> None:
    """Latency takes the first token off and shares the rest among the others."""
    batch = Load([[1]] * 16, 64)
    assert throughput_values({"elapsed_s": 8.0}, batch) == {"elapsed_s": 8.0, "output_tokens_per_s": 128.0}
    single = latency_values({"first_token_s": 0.5, "elapsed_s": 3.0}, Load([[1], [2]], 101))
    assert single["decode_ms_per_token"] == pytest.approx(25.0)
    assert single["first_token_ms"] == pytest.approx(500.0)
    assert prefix_values({"first_pass_s": 6.0, "second_pass_s": 0.5}, batch)["speedup"] == 12.0


def test_the_benchmarks_shape_has_the_size_it_claims() -> None:
    """0.3 billion parameters, and 24 KiB of keys and values a token."""
    assert LLAMA_300M.parameters == 303_350_784
    assert LLAMA_300M.kv_bytes_per_token == 24 * 1024


def test_prefill_counts_all_layers_and_one_output_row_per_prompt() -> None:
    """Tiny enough to count by hand: (16 + 8) rows of qkv and output, 3 matrices of the FFN."""
    layer = 16 * 8 + 8 * 8 + 32 * 8 + 8 * 16
    assert TINY.layer_parameters == layer
    seconds = prefill_s(TINY, BatchSize(3, 5, 2), MachineRates(gemm_flops=1.0, read_bytes=1.0))
    assert seconds == 2 * (15 * 2 * layer + 3 * 100 * 8)


def test_a_decode_step_reads_weights_once_and_every_sequences_kv() -> None:
    """Doubling the batch adds KV, not weights."""
    one, two = (decode_step_bytes(TINY, count, 10) for count in (1, 2))
    assert two - one == 10 * TINY.kv_bytes_per_token
    assert one - 10 * TINY.kv_bytes_per_token == 2 * TINY.parameters


def test_the_bound_agrees_with_the_worked_example() -> None:
    """The numbers in the module's docstring: about 4.7 s of prefill and 146 tokens per second in all."""
    batch = BatchSize(16, 256, 64)
    assert prefill_s(LLAMA_300M, batch, RATES) == pytest.approx(4.72, abs=0.01)
    assert throughput_bound(LLAMA_300M, batch, RATES) == pytest.approx(146.5, abs=0.5)


def test_a_decode_bound_is_the_time_to_read_everything_once() -> None:
    """0.607 GB of weights and 96.5 tokens of KV on the average at 20 GB/s."""
    read = 2 * LLAMA_300M.parameters + 96 * LLAMA_300M.kv_bytes_per_token
    assert decode_bound_ms(LLAMA_300M, BatchSize(1, 32, 128), RATES) == pytest.approx(1000 * read / 20e9)


def _samples(**medians: tuple[str, str, float]) -> Samples:
    entries = [
        Sample(subject.replace("_", " "), scenario, 0, {metric: value}, 0.0)
        for subject, (scenario, metric, value) in medians.items()
    ]
    return Samples(entries)


def test_goals_compare_speeds() -> None:
    """Each goal is a ratio within one run; half the milliseconds are twice the speed."""
    samples = _samples(
        vllm=("throughput", "output_tokens_per_s", 100.0),
        transformers=("throughput", "output_tokens_per_s", 50.0),
        kvasir_int8=("int8", "decode_ms_per_token", 20.0),
    )
    samples.entries += [
        Sample("kvasir", "throughput", 0, {"output_tokens_per_s": 120.0, "of_bound": 0.8}, 0.0),
        Sample("kvasir", "latency", 0, {"decode_ms_per_token": 40.0, "of_bound": 0.7}, 0.0),
        Sample("kvasir", "prefix", 0, {"speedup": 4.0}, 0.0),
    ]
    reached = {goal.name: goal for goal in goals(samples)}
    assert {name: goal.actual for name, goal in reached.items()} == {
        "batch throughput, against vLLM at its best": 1.2,
        "batch throughput, against transformers": 2.4,
        "batch throughput, against the machine's bound": 0.8,
        "batch 1 decode, against the machine's bound": 0.7,
        "batch 1 decode, int8 against bf16": 2.0,
        "first tokens of the same prompts again": 4.0,
    }
    assert [goal.met for goal in reached.values()] == [True, True, True, False, True, False]


def test_vllm_counts_with_the_better_of_its_kernels() -> None:
    """A peer is compared with in its best configuration."""
    samples = _samples(
        kvasir=("throughput", "output_tokens_per_s", 120.0),
        vllm=("throughput", "output_tokens_per_s", 80.0),
        vllm_zentorch=("throughput", "output_tokens_per_s", 100.0),
    )
    assert goals(samples)[0].actual == pytest.approx(1.2)


def test_what_was_not_measured_is_no_goal_missed() -> None:
    """Without a peer or without the machine's rates a goal is unknown."""
    assert [goal.met for goal in goals(Samples())] == [None] * 6


def test_a_share_of_the_bound_is_one_of_speeds() -> None:
    """Twice the bound's milliseconds, or half its tokens, are half of what the machine allows."""
    bounds = Bounds(output_tokens_per_s=150.0, decode_ms=30.0, decode_ms_q8_0=17.0)
    assert share_of_bound({"decode_ms_per_token": 60.0, "output_tokens_per_s": 16.0}, bounds) == 0.5
    assert share_of_bound({"elapsed_s": 9.0, "output_tokens_per_s": 75.0}, bounds) == 0.5
    assert share_of_bound({"speedup": 9.0}, bounds) is None


def test_bounds_follow_the_sizes() -> None:
    """A run with other sizes is held against its own bound."""
    small, usual = (Bounds.of(LLAMA_300M, sizes, RATES) for sizes in (Sizes(num_prompts=1), Sizes()))
    assert small.output_tokens_per_s < usual.output_tokens_per_s
    assert usual.decode_ms_q8_0 < 0.6 * usual.decode_ms
