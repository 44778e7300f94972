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
class Sequences:
    """Block tables and lengths of some sequences: `tables_NM` and `lengths_N`, int32.

    A length includes the step's own tokens. Entries of a table beyond its length, and of blocks that a window has
    passed, mean nothing: they name some block, whose content must not matter.
    """

    tables_NM: Tensor
    lengths_N: Tensor

    def __len__(self) -> int:
        return self.lengths_N.shape[0]


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """One step's rows: first the decode rows (one token of one sequence each), then the prefill rows.

    slots_T: where each row's K and V go: block * block_size + offset. int64.
    positions_T: each row's position in its sequence. int64.
    starts_P: prefill rows `starts[i]` to `starts[i + 1]`, counted after the decode rows, are the last tokens of
    sequence i of `prefills`; int32, one more entry than sequences.
    """

    slots_T: Tensor
    positions_T: Tensor
    decodes: Sequences
    prefills: Sequences
    starts_P: Tensor
