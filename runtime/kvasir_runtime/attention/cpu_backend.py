"""Attention on CPUs by the C++ kernels. Shape suffixes: see `attention.backend`."""

import torch
from torch import Tensor

from kvasir_runtime.attention.metadata import AttentionMetadata, AttentionSpec, Sequences
from kvasir_runtime.kernels.cpu.library import Library
from kvasir_runtime.models.config import DecoderConfig


class CpuBackend:
    """For float32 and bfloat16; head dimensions that are multiples of 16, up to 256.

    Where `library.kv_paired`, the S x C elements that a block holds of a KV head are in an order of the kernels' own.
    """

    name = "cpu"

    def __init__(self, library: Library) -> None:
        self.library = library

    def write_kv(
        self, q_THC: Tensor, k_TKC: Tensor, v_TKC: Tensor, cos_sin_LC: Tensor, kv_2BKSC: Tensor, step: AttentionMetadata
    ) -> Tensor:
        rows, heads, head_dim = q_THC.shape
        _, blocks, kv_heads, block_size, _ = kv_2BKSC.shape
        out_THC = q_THC.new_empty(q_THC.shape)
        self.library.write_kv(
            q_THC.dtype is torch.bfloat16,
            q_THC.data_ptr(),
            k_TKC.data_ptr(),
            v_TKC.data_ptr(),
            out_THC.data_ptr(),
            kv_2BKSC.data_ptr(),
            cos_sin_LC.data_ptr(),
            step.positions_T.data_ptr(),
            step.slots_T.data_ptr(),
            rows,
            heads,
            kv_heads,
            head_dim,
            blocks,
            block_size,
            q_THC.stride(0),
            k_TKC.stride(0),
            v_TKC.stride(0),
            torch.get_num_threads(),
        )
        return out_THC

    def decode(self, q_NHC: Tensor, kv_2BKSC: Tensor, spec: AttentionSpec, step: AttentionMetadata) -> Tensor:
        return self._attend(q_NHC, kv_2BKSC, spec, step.decodes, None)

    def prefill(self, q_PHC: Tensor, kv_2BKSC: Tensor, spec: AttentionSpec, step: AttentionMetadata) -> Tensor:
        return self._attend(q_PHC, kv_2BKSC, spec, step.prefills, step.starts_P.data_ptr())

    def _attend(
        self, q_THC: Tensor, kv_2BKSC: Tensor, spec: AttentionSpec, sequences: Sequences, starts: int | None
    ) -> Tensor:
        out_THC = torch.empty_like(q_THC)
        self.library.attention(
            q_THC.dtype is torch.bfloat16,
            q_THC.data_ptr(),
            kv_2BKSC.data_ptr(),
            sequences.tables_NM.data_ptr(),
            sequences.lengths_N.data_ptr(),
            starts,
            out_THC.data_ptr(),
            len(sequences),
            spec.num_heads,
            spec.num_kv_heads,
            spec.head_dim,
            kv_2BKSC.shape[1],
            kv_2BKSC.shape[3],
            sequences.tables_NM.shape[1],
            spec.scale,
            spec.softcap or 0.0,
            spec.window or 0,
            torch.get_num_threads(),
        )
        return out_THC


def supports(library: Library, config: DecoderConfig, dtype: torch.dtype) -> bool:
    """Whether the kernels can serve this shape; the reference serves the others."""
    return (
        dtype in (torch.float32, torch.bfloat16)
        and config.head_dim <= 256
        and config.head_dim % 16 == 0
        and config.num_heads // config.num_kv_heads <= library.max_group
    )
