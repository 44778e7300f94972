"""What the machine itself allows: matrix products at its measured rate, memory at its measured bandwidth.

The bound of a batch is the time to prefill every prompt at the rate of bfloat16 matrix products, plus a decode step
per further token at the bandwidth of reading weights and KV cache once. Attention's own arithmetic, sampling and all
overheads count as free, so no engine can reach 100 %.

Worked for 16 prompts of 256 tokens with 64 outputs at 470 GFLOP/s and 20 GB/s: prefill multiplies 4096 tokens by 270.5
million layer parameters, 2.22 TFLOP, 4.7 s; each of 63 steps reads 0.607 GB of weights and about 0.113 GB of KV,
2.3 s in all; 1024 tokens in 7.0 s are 146 tokens per second.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.peers.shape import LlamaShape
from benchmarks.peers.workload import Sizes

BF16_BYTES = 2
# A block of 32 int8 values and a 2-byte scale, llama.cpp's Q8_0.
Q8_0_BYTES = 34 / 32


@dataclass(frozen=True)
class MachineRates:
    """What was measured: `gemm_flops` of bfloat16 products at prefill's shapes, `read_bytes` of DRAM, per second."""

    gemm_flops: float
    read_bytes: float


@dataclass(frozen=True)
class BatchSize:
    num_prompts: int
    input_len: int
    output_len: int


def prefill_s(shape: LlamaShape, batch: BatchSize, rates: MachineRates) -> float:
    """Seconds to prefill: all layers for every token, the output matrix for each prompt's last token only."""
    tokens = batch.num_prompts * batch.input_len
    multiplied = tokens * shape.layers * shape.layer_parameters + batch.num_prompts * shape.vocabulary * shape.hidden
    return 2 * multiplied / rates.gemm_flops


def decode_step_bytes(
    shape: LlamaShape, num_prompts: int, context_len: float, bytes_per_weight: float = BF16_BYTES
) -> float:
    """Bytes that one decode step must read: each weight once, and the KV of every sequence."""
    return shape.parameters * bytes_per_weight + num_prompts * context_len * shape.kv_bytes_per_token


def decode_s(shape: LlamaShape, batch: BatchSize, rates: MachineRates, bytes_per_weight: float = BF16_BYTES) -> float:
    """Seconds for all decode steps; prefill gives the first token, so there is one step fewer than outputs."""
    steps = batch.output_len - 1
    mean_context = batch.input_len + (steps + 1) / 2
    return steps * decode_step_bytes(shape, batch.num_prompts, mean_context, bytes_per_weight) / rates.read_bytes


def throughput_bound(shape: LlamaShape, batch: BatchSize, rates: MachineRates) -> float:
    """Output tokens per second that no engine on this machine can exceed in bfloat16."""
    seconds = prefill_s(shape, batch, rates) + decode_s(shape, batch, rates)
    return batch.num_prompts * batch.output_len / seconds


def decode_bound_ms(
    shape: LlamaShape, batch: BatchSize, rates: MachineRates, bytes_per_weight: float = BF16_BYTES
) -> float:
    """Least milliseconds per decode step of this batch."""
    return 1000 * decode_s(shape, batch, rates, bytes_per_weight) / (batch.output_len - 1)


@dataclass(frozen=True)
class Bounds:
    """What the machine allows for this run's sizes."""

    output_tokens_per_s: float
    decode_ms: float
    decode_ms_q8_0: float

    @classmethod
    def of(cls, shape: LlamaShape, sizes: Sizes, rates: MachineRates) -> "Bounds":
        batch = BatchSize(sizes.num_prompts, sizes.input_len, sizes.output_len)
        single = BatchSize(1, sizes.latency_input_len, sizes.latency_output_len)
        return cls(
            output_tokens_per_s=throughput_bound(shape, batch, rates),
            decode_ms=decode_bound_ms(shape, single, rates),
            decode_ms_q8_0=decode_bound_ms(shape, single, rates, Q8_0_BYTES),
        )


def mean_rates(measured: Sequence[MachineRates]) -> MachineRates:
    return MachineRates(
        statistics.fmean(one.gemm_flops for one in measured), statistics.fmean(one.read_bytes for one in measured)
    )


def share_of_bound(values: Mapping[str, float], bounds: Bounds) -> float | None:
    """How near a bfloat16 measurement comes to its bound: 0 to 1; None for one that has no bound."""
    if "decode_ms_per_token" in values:
        return bounds.decode_ms / values["decode_ms_per_token"]
    if "output_tokens_per_s" in values:
        return values["output_tokens_per_s"] / bounds.output_tokens_per_s
    return None
