"""What Kvasir sets out to reach, as ratios within one run on one machine."""

from dataclasses import dataclass

from benchmarks.peers.metrics import Samples
from benchmarks.peers.subjects import VLLM_ZEN
from benchmarks.peers.summary import ratio


@dataclass(frozen=True)
class Goal:
    """A ratio to reach; `actual` is None when what it compares was not measured."""

    name: str
    target: float
    actual: float | None

    @property
    def met(self) -> bool | None:
        return None if self.actual is None else self.actual >= self.target


def goals(samples: Samples) -> list[Goal]:
    """Every goal with what was reached. Speeds are compared as speeds: twice as fast is 2, in either unit.

    A share of the bound is that of each round, with the machine's rates of just then, and the median of the rounds.
    """
    rate = {
        engine: samples.summary(engine, "throughput", "output_tokens_per_s")
        for engine in ("kvasir", "vllm", VLLM_ZEN, "transformers")
    }
    vllm = max(filter(None, (rate["vllm"], rate[VLLM_ZEN])), key=lambda summary: summary.median, default=None)
    decode = samples.summary("kvasir", "latency", "decode_ms_per_token")
    decode_int8 = samples.summary("kvasir int8", "int8", "decode_ms_per_token")
    speedup = samples.summary("kvasir", "prefix", "speedup")
    of_rate, of_decode = (samples.summary("kvasir", scenario, "of_bound") for scenario in ("throughput", "latency"))
    return [
        Goal("batch throughput, against vLLM at its best", 1.15, ratio(rate["kvasir"], vllm)),
        Goal("batch throughput, against transformers", 2.2, ratio(rate["kvasir"], rate["transformers"])),
        Goal("batch throughput, against the machine's bound", 0.80, of_rate.median if of_rate else None),
        Goal("batch 1 decode, against the machine's bound", 0.75, of_decode.median if of_decode else None),
        Goal("batch 1 decode, int8 against bf16", 1.8, ratio(decode, decode_int8)),
        Goal("first tokens of the same prompts again", 5.0, speedup.median if speedup else None),
    ]
