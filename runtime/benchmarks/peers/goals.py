"""What Kvasir sets out to reach, as ratios within one run on one machine."""

from dataclasses import dataclass

from benchmarks.peers.bounds import (
    Q8_0_BYTES,
    BatchSize,
    MachineRates,
    decode_bound_ms,
    throughput_bound,
)
from benchmarks.peers.metrics import Samples
from benchmarks.peers.shape import LlamaShape
from benchmarks.peers.subjects import VLLM_ZEN
from benchmarks.peers.summary import ratio
from benchmarks.peers.workload import Sizes


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


@dataclass(frozen=True)
class Goal:
    """A ratio to reach; `actual` is None when what it compares was not measured."""

    name: str
    target: float
    actual: float | None

    @property
    def met(self) -> bool | None:
        return None if self.actual is None else self.actual >= self.target


def goals(samples: Samples, bounds: Bounds | None) -> list[Goal]:
    """Every goal with what was reached. Speeds are compared as speeds: twice as fast is 2, in either unit."""
    rate = {
        engine: samples.summary(engine, "throughput", "output_tokens_per_s")
        for engine in ("kvasir", "vllm", VLLM_ZEN, "transformers")
    }
    vllm = max(filter(None, (rate["vllm"], rate[VLLM_ZEN])), key=lambda summary: summary.median, default=None)
    decode = samples.summary("kvasir", "latency", "decode_ms_per_token")
    decode_int8 = samples.summary("kvasir int8", "int8", "decode_ms_per_token")
    speedup = samples.summary("kvasir", "prefix", "speedup")
    of_rate = rate["kvasir"].median / bounds.output_tokens_per_s if bounds and rate["kvasir"] else None
    of_decode = bounds.decode_ms / decode.median if bounds and decode else None
    return [
        Goal("batch throughput, against vLLM at its best", 1.15, ratio(rate["kvasir"], vllm)),
        Goal("batch throughput, against transformers", 2.2, ratio(rate["kvasir"], rate["transformers"])),
        Goal("batch throughput, against the machine's bound", 0.80, of_rate),
        Goal("batch 1 decode, against the machine's bound", 0.75, of_decode),
        Goal("batch 1 decode, int8 against bf16", 1.8, ratio(decode, decode_int8)),
        Goal("first tokens of the same prompts again", 5.0, speedup.median if speedup else None),
    ]
