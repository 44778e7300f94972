"""What the scheduler tells the model runner each step: one message of plain values. Torch-free."""

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvasir_runtime.sampling_params import SamplingParams

if TYPE_CHECKING:
    from kvasir_runtime.structured.grammar import Grammar


@dataclass(frozen=True, slots=True)
class Seating:
    """A sequence takes a seat: a row of the runner's tables, kept until another sequence is given the same one.

    `token_ids` holds the prompt and, after a preemption, what was produced before it.
    """

    seat: int
    token_ids: "array[int]"
    num_prompt_tokens: int
    num_computed_tokens: int
    sampling: SamplingParams
    seed: int
    stop_token_ids: frozenset[int]
    grammar: "Grammar | None" = None
    adapter_slot: int = -1
    """Slot of its adapter; -1: the base model."""


@dataclass(frozen=True, slots=True)
class TableGrowth:
    """Blocks appended to the block table of a seat, from entry `start` on."""

    seat: int
    start: int
    block_ids: list[int]


@dataclass(slots=True)
class SchedulerOutput:
    """Row i of the step computes `num_new_tokens[i]` tokens of the sequence on `seats[i]`.

    Rows with one new token come first (`num_single` of them), so that decode and prefill are two slices.
    `samples[i]` says whether the row reaches its sequence's last token and a new one is to be sampled.
    """

    seats: list[int] = field(default_factory=list)
    num_new_tokens: list[int] = field(default_factory=list)
    num_computed_tokens: list[int] = field(default_factory=list)
    samples: list[bool] = field(default_factory=list)
    num_single: int = 0
    seatings: list[Seating] = field(default_factory=list)
    growths: list[TableGrowth] = field(default_factory=list)
    activations: list[tuple[int, str]] = field(default_factory=list)
    """Adapter slots that hold another adapter from this step on, with its digest."""
    saves: list[tuple[int, int]] = field(default_factory=list)
    """KV blocks to copy to slots of host memory, before anything else."""
    loads: list[tuple[int, int]] = field(default_factory=list)
    """Slots of host memory to copy to KV blocks, after all saves and before the model runs."""

    @property
    def num_tokens(self) -> int:
        return sum(self.num_new_tokens)
