"""What attention needs to know about a step, and about a layer. Shapes: see `attention.backend`."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """A layer's kind of attention.

    `window`: a token sees at most so many tokens, itself included; None for all before it.
    `softcap`: scores s become softcap * tanh(s / softcap); None for none.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    softcap: float | None = None

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.num_heads // self.num_kv_heads


@dataclass(frozen=True, slots=True)
class PrefillSpan:
    """Rows `start:end` of the step are the last `end - start` of a sequence's `length` tokens."""

    start: int
    end: int
    length: int
    block_table_M: Tensor


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """One step's rows: first the decode rows (one token of one sequence each), then the prefill spans.

    slots_T: where each row's K and V go: block * block_size + offset. int64.
    positions_T: each row's position in its sequence. int64.
    block_tables_NM, lengths_N: of the decode rows; a length includes the row's own token. int32.
    """

    slots_T: Tensor
    positions_T: Tensor
    num_decodes: int
    block_tables_NM: Tensor
    lengths_N: Tensor
    prefills: tuple[PrefillSpan, ...]
