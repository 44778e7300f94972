"""The CPU kernels beside what torch offers for the same work, in pairs: `python -m benchmarks.cpu_kernels`.

Run from `runtime/`. One thread, timed by the CPU time it used: what else runs on the machine takes the core away but
hardly changes the figures; it does take memory bandwidth, so each figure is the median of runs that alternate with its
rival's. Prints Markdown.
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

import torch
from torch.nn import functional

import kvasir_runtime.worker  # noqa: F401 - sets the environment that torch reads when it is imported
from kvasir_runtime.attention.cpu_backend import CpuBackend
from kvasir_runtime.attention.metadata import AttentionMetadata, AttentionSpec, Sequences
from kvasir_runtime.attention.reference import gather
from kvasir_runtime.huge_pages import Arena
from kvasir_runtime.kernels.cpu.library import Library, load_library
from kvasir_runtime.quantization.bf16 import Bf16Linear
from kvasir_runtime.quantization.int8 import Int8Linear
from kvasir_runtime.quantization.onednn import OneDnnLinear

SPEC: Final = AttentionSpec(num_heads=16, num_kv_heads=4, head_dim=64, scale=0.125)
BLOCK: Final = 16
COLD_BYTES: Final = 96 << 20
"""Data is spread over so much memory that no cache holds it."""

Work = Callable[[int], object]


def pair(ours: Work, theirs: Work, rounds: int) -> tuple[float, float]:
    """Median CPU seconds of both, run in turns; each call gets its number, to work on other data than the last."""
    ours(0), theirs(0)
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(1, rounds + 1):
        for turn, (work, seconds) in enumerate(zip((ours, theirs), times, strict=True)):
            start = time.thread_time()
            work(2 * number + turn)
            seconds.append(time.thread_time() - start)
    return median(times[0]), median(times[1])


def linear_rows(library: Library, rounds: int) -> list[str]:
    """One row of activations is decode at batch 1, 16 a batch, 256 a prompt. Ratios are of runs in turns."""
    outputs, inputs = 5632, 1024
    weights = [torch.randn(outputs, inputs).bfloat16() for _ in range(COLD_BYTES // (2 * outputs * inputs))]
    packed = [OneDnnLinear(weight.clone(), None) for weight in weights]
    arena = Arena()
    panels = [Bf16Linear(library, arena, weight, None) for weight in weights]
    quantized = [Int8Linear(library, arena, weight, None) for weight in weights]
    lines = []
    for rows in (1, 4, 16, 64, 256):
        x = torch.randn(rows, inputs).bfloat16()
        few = rounds if rows < 64 else max(5, rounds // 4)
        plain = each_in_turn([partial(functional.linear, x, weight) for weight in weights])
        blocked, ours, int8 = (
            each_in_turn([partial(linear, x) for linear in linears]) for linears in (packed, panels, quantized)
        )
        plain_s, packed_s = pair(plain, blocked, few)
        ours_s, beside_ours_s = pair(ours, blocked, few)
        int8_s, beside_int8_s = pair(int8, ours, few)
        rates = [2 * rows * outputs * inputs / seconds / 1e9 for seconds in (plain_s, packed_s, ours_s, int8_s)]
        lines.append(
            f"| {rows} | {rates[0]:.0f} | {rates[1]:.0f} | {rates[2]:.0f} | {beside_ours_s / ours_s:.2f} "
            f"| {rates[3]:.0f} | {beside_int8_s / int8_s:.2f} |"
        )
    return lines


def each_in_turn(calls: Sequence[Callable[[], object]]) -> Work:
    return lambda number: calls[number % len(calls)]()


def attention_step(sequences: int, length: int, *, prefill: bool) -> tuple[torch.Tensor, list[AttentionMetadata]]:
    """A cache, and steps whose sequences lie in other scattered blocks each."""
    blocks = -(-length // BLOCK)
    per_step = sequences * blocks
    count = max(2, COLD_BYTES // (per_step * BLOCK * SPEC.num_kv_heads * SPEC.head_dim * 4))
    cache = torch.randn(2, count * per_step + 1, SPEC.num_kv_heads, BLOCK, SPEC.head_dim).bfloat16()
    order = (torch.randperm(count * per_step) + 1).int().view(count, sequences, blocks)
    lengths = torch.full((sequences,), length, dtype=torch.int32)
    nothing = Sequences(torch.zeros(0, 0, dtype=torch.int32), torch.zeros(0, dtype=torch.int32))
    empty, starts = torch.zeros(0), torch.arange(sequences + 1, dtype=torch.int32) * length
    steps = []
    for tables in order:
        these = Sequences(tables.contiguous(), lengths)
        decodes, prefills = (nothing, these) if prefill else (these, nothing)
        steps.append(AttentionMetadata(empty, empty, decodes, prefills, starts))
    return cache, steps


def sdpa(q_THC: torch.Tensor, cache: torch.Tensor, rows: int, step: AttentionMetadata) -> None:
    """Gather each sequence's blocks, then torch's own attention."""
    sequences = step.prefills if rows > 1 else step.decodes
    for number, length in enumerate(sequences.lengths_N.tolist()):
        k_KLC, v_KLC = gather(cache, sequences.tables_NM[number], length)
        q_HQC = q_THC[number * rows : (number + 1) * rows].transpose(0, 1)
        functional.scaled_dot_product_attention(
            q_HQC[None], k_KLC[None], v_KLC[None], is_causal=rows > 1, scale=SPEC.scale, enable_gqa=True
        )


def attention_rows(library: Library, rounds: int, *, prefill: bool) -> list[str]:
    backend = CpuBackend(library)
    lines = []
    for sequences, length in ((4, 256), (1, 1024)) if prefill else ((1, 256), (16, 256), (1, 4096), (4, 4096)):
        cache, steps = attention_step(sequences, length, prefill=prefill)
        rows = length if prefill else 1
        q_THC = torch.randn(sequences * rows, SPEC.num_heads, SPEC.head_dim).bfloat16()
        run = backend.prefill if prefill else backend.decode

        ours = each_in_turn([partial(run, q_THC, cache, SPEC, step) for step in steps])
        theirs = each_in_turn([partial(sdpa, q_THC, cache, rows, step) for step in steps])
        ours_s, theirs_s = pair(ours, theirs, rounds)
        read = sequences * length * SPEC.num_kv_heads * SPEC.head_dim * 4 / ours_s / 1e9
        speed = "" if prefill else f" {read:.1f} |"
        times = f"{1e3 * ours_s:.2f} |{speed} {1e3 * theirs_s:.2f} | {theirs_s / ours_s:.1f}"
        lines.append(f"| {sequences} x {length} | {times} |")
    return lines


def read_rate(rounds: int) -> float:
    """Bytes a second that one thread reads from memory, by a sum."""
    data = torch.zeros(COLD_BYTES // 4)
    summed, _ = pair(lambda _: data.sum(), lambda _: None, rounds)
    return data.nbytes / summed


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="runs of each (default 40)")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    library = load_library()
    if library is None:
        print("no CPU kernels here: install g++", file=sys.stderr)
        return 1
    versions = f"{library.path.name}, torch {torch.__version__}"
    print(f"{cpu_name()}, {versions}, one thread, medians of {rounds} runs")
    print(f"\nMemory read by one thread: {read_rate(rounds) / 1e9:.1f} GB/s\n")
    print("| rows | F.linear bf16, GFLOP/s | oneDNN, packed | bf16 | bf16 / oneDNN | int8, GOP/s | int8 / bf16 |")
    print("|---|---|---|---|---|---|---|\n" + "\n".join(linear_rows(library, rounds)))
    print("\n| decode, sequences x tokens | ours, ms | KV GB/s | gather + SDPA, ms | times faster |")
    print("|---|---|---|---|---|")
    print("\n".join(attention_rows(library, rounds, prefill=False)))
    print("\n| prefill, sequences x tokens | ours, ms | gather + SDPA, ms | times faster |\n|---|---|---|---|")
    print("\n".join(attention_rows(library, max(5, rounds // 4), prefill=True)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
