"""The one interface between models and attention kernels.

Shape suffixes: T rows of the step (tokens), N decode rows, H query heads, K KV heads, C head dimension,
B blocks, S tokens in a block (block_size), M entries of a block table, 2 = key and value.

A layer's cache is `kv_2BKSC`: within a block, the tokens of one KV head lie together, so that one head's keys are
read in runs of S * C elements. In which order those stand is the backend's own affair; whole blocks may be copied.
"""

from typing import Protocol

from torch import Tensor

from kvasir_runtime.attention.metadata import AttentionMetadata, AttentionSpec


class AttentionBackend(Protocol):
    """Kernels of one kind of device. All calls of a step share one `AttentionMetadata`."""

    name: str

    def write_kv(
        self, q_THC: Tensor, k_TKC: Tensor, v_TKC: Tensor, cos_sin_LC: Tensor, kv_2BKSC: Tensor, step: AttentionMetadata
    ) -> Tensor:
        """Rotate q and k by their positions (RoPE), store k and v at the step's slots, return the rotated q.

        `cos_sin_LC` holds for each position the C/2 cosines and then the C/2 sines, in float32.
        """

    def decode(self, q_NHC: Tensor, kv_2BKSC: Tensor, spec: AttentionSpec, step: AttentionMetadata) -> Tensor:
        """Attention of the decode rows over their block tables: `[N, H, C]`."""

    def prefill(self, q_PHC: Tensor, kv_2BKSC: Tensor, spec: AttentionSpec, step: AttentionMetadata) -> Tensor:
        """Attention of the rows after the decode rows, causal within each span, over all tokens before: `[P, H, C]`."""
