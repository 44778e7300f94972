"""Attention in plain torch: what every other backend is compared with, on any device and dtype."""

import torch
from torch import Tensor

from kvasir_runtime.attention.metadata import AttentionMetadata, AttentionSpec


class ReferenceBackend:
    """Computes in float32, one sequence at a time."""

    name = "reference"

    def write_kv(
        self, q_THC: Tensor, k_TKC: Tensor, v_TKC: Tensor, cos_sin_LC: Tensor, kv_2BKSC: Tensor, step: AttentionMetadata
    ) -> Tensor:
        cos_TC, sin_TC = cos_sin_LC[step.positions_T].chunk(2, dim=-1)
        block_size = kv_2BKSC.shape[3]
        blocks_T, offsets_T = step.slots_T // block_size, step.slots_T % block_size
        kv_2BKSC[0][blocks_T, :, offsets_T] = rotate(k_TKC, cos_TC, sin_TC)
        kv_2BKSC[1][blocks_T, :, offsets_T] = v_TKC
        return rotate(q_THC, cos_TC, sin_TC)

    def decode(self, q_NHC: Tensor, kv_2BKSC: Tensor, spec: AttentionSpec, step: AttentionMetadata) -> Tensor:
        rows = [
            attend(q_NHC[row : row + 1], *gather(kv_2BKSC, step.decodes.tables_NM[row], length), spec)
            for row, length in enumerate(step.decodes.lengths_N.tolist())
        ]
        return torch.cat(rows) if rows else torch.empty_like(q_NHC)

    def prefill(self, q_PHC: Tensor, kv_2BKSC: Tensor, spec: AttentionSpec, step: AttentionMetadata) -> Tensor:
        out_PHC = torch.empty_like(q_PHC)
        starts = step.starts_P.tolist()
        for number, length in enumerate(step.prefills.lengths_N.tolist()):
            rows = slice(starts[number], starts[number + 1])
            out_PHC[rows] = attend(q_PHC[rows], *gather(kv_2BKSC, step.prefills.tables_NM[number], length), spec)
        return out_PHC


def rotate(x_THC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    """RoPE with the halves of a head paired (the Hugging Face layout), in float32. Source: arXiv 2104.09864."""
    left, right = x_THC.float().chunk(2, dim=-1)
    cos, sin = cos_TC[:, None], sin_TC[:, None]
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1).to(x_THC.dtype)


def gather(kv_2BKSC: Tensor, block_table_M: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The first `length` keys and values of a sequence, contiguous: `[K, length, C]` each."""
    block_size = kv_2BKSC.shape[3]
    blocks = block_table_M[: -(-length // block_size)].long()
    k_KLC, v_KLC = kv_2BKSC[:, blocks].transpose(1, 2).flatten(2, 3)[:, :, :length]
    return k_KLC, v_KLC


def attend(q_QHC: Tensor, k_KLC: Tensor, v_KLC: Tensor, spec: AttentionSpec) -> Tensor:
    """The last Q of L tokens attend to all tokens up to themselves: `[Q, H, C]`."""
    num_queries, length = q_QHC.shape[0], k_KLC.shape[1]
    q_KGQC = q_QHC.float().reshape(num_queries, spec.num_kv_heads, spec.group, -1).permute(1, 2, 0, 3)
    scores_KGQL = q_KGQC @ k_KLC.float().mT[:, None] * spec.scale
    if spec.softcap is not None:
        scores_KGQL = torch.tanh(scores_KGQL / spec.softcap) * spec.softcap
    hidden_QL = ~visible(num_queries, length, spec.window, q_QHC.device)
    weights_KGQL = scores_KGQL.masked_fill(hidden_QL, float("-inf")).softmax(dim=-1)
    out_KGQC = weights_KGQL @ v_KLC.float()[:, None]
    out_QHC: Tensor = out_KGQC.permute(2, 0, 1, 3).flatten(1, 2).to(q_QHC.dtype)
    return out_QHC


def visible(num_queries: int, length: int, window: int | None, device: torch.device | str = "cpu") -> Tensor:
    """`[Q, L]` of bool: which tokens the last Q of L tokens see."""
    queries_Q1 = torch.arange(length - num_queries, length, device=device)[:, None]
    keys_L = torch.arange(length, device=device)
    seen_QL = keys_L <= queries_Q1
    return seen_QL if window is None else seen_QL & (keys_L > queries_Q1 - window)
