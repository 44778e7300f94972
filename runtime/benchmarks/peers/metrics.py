"""From wall-clock times to the figures that are compared."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.peers.summary import Summary
from benchmarks.peers.workers.protocol import Load

Values = Mapping[str, float]


@dataclass(frozen=True)
class Sample:
    """One round of one scenario. `foreign_cpu` is the share of the cores' time that other programs took meanwhile."""

    subject: str
    scenario: str
    round_index: int
    values: Values
    foreign_cpu: float


@dataclass
class Samples:
    """All that was measured so far."""

    entries: list[Sample] = field(default_factory=list)

    def summary(self, subject: str, scenario: str, metric: str) -> Summary | None:
        """Median and spread over the rounds; None when it was not measured."""
        values = [
            sample.values[metric]
            for sample in self.entries
            if (sample.subject, sample.scenario) == (subject, scenario) and metric in sample.values
        ]
        return Summary.of(values) if values else None

    def foreign_cpu(self) -> float:
        """The worst share of the machine that other programs took during any sample."""
        return max((sample.foreign_cpu for sample in self.entries), default=0.0)


def throughput_values(seconds: Values, load: Load) -> dict[str, float]:
    elapsed_s = seconds["elapsed_s"]
    return {"elapsed_s": elapsed_s, "output_tokens_per_s": load.output_tokens / elapsed_s}


def latency_values(seconds: Values, load: Load) -> dict[str, float]:
    """One request: the first token's time taken off, the rest shared by the other tokens."""
    decode_s = (seconds["elapsed_s"] - seconds["first_token_s"]) / (load.output_len - 1)
    return {
        "first_token_ms": 1000 * seconds["first_token_s"],
        "decode_ms_per_token": 1000 * decode_s,
        "output_tokens_per_s": load.output_len / seconds["elapsed_s"],
    }


def prefix_values(seconds: Values, load: Load) -> dict[str, float]:  # noqa: ARG001 - one signature for all
    first_s, second_s = seconds["first_pass_s"], seconds["second_pass_s"]
    return {"first_pass_s": first_s, "second_pass_s": second_s, "speedup": first_s / second_s}


VALUES = {"throughput": throughput_values, "latency": latency_values, "prefix": prefix_values}
