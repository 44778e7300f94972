"""The prompts: token ids drawn once from a fixed seed, the same for every engine, other ones in every round."""

import random
from dataclasses import dataclass
from typing import Final

from benchmarks.peers.workers.protocol import Load, TokenIds

SCENARIOS: Final = ("throughput", "latency", "prefix", "int8")
FIRST_ORDINARY_TOKEN: Final = 2
"""Ids below are special tokens."""


@dataclass(frozen=True)
class Sizes:
    """How large each scenario is, in requests and tokens."""

    num_prompts: int = 16
    input_len: int = 256
    output_len: int = 64
    latency_input_len: int = 32
    latency_output_len: int = 128


@dataclass(frozen=True)
class RoundLoads:
    """What one round measures, and warm-ups of the same shape with other prompts."""

    loads: dict[str, Load]
    warmups: dict[str, Load]


WARMUP_OUTPUT_LEN: Final = 4


def round_loads(seed: int, round_index: int, vocabulary: int, sizes: Sizes) -> RoundLoads:
    """Loads of one round. Equal arguments give equal token ids on every machine and Python version."""
    draw = _Prompts(random.Random(f"{seed}/{round_index}"), vocabulary)  # noqa: S311 - not a secret
    batch, single = (sizes.num_prompts, sizes.input_len), (1, sizes.latency_input_len)
    loads = {
        "throughput": Load(draw(*batch), sizes.output_len),
        "latency": Load(draw(2, sizes.latency_input_len), sizes.latency_output_len),
        "prefix": Load(draw(*batch), 1),
    }
    warmups = {
        "throughput": Load(draw(*batch), WARMUP_OUTPUT_LEN),
        "latency": Load(draw(*single), WARMUP_OUTPUT_LEN),
        "prefix": Load(draw(*batch), 1),
    }
    return RoundLoads(loads, warmups)


class _Prompts:
    def __init__(self, source: random.Random, vocabulary: int) -> None:
        self._source = source
        self._vocabulary = vocabulary

    def __call__(self, count: int, length: int) -> list[TokenIds]:
        return [
            [self._source.randrange(FIRST_ORDINARY_TOKEN, self._vocabulary) for _ in range(length)]
            for _ in range(count)
        ]
