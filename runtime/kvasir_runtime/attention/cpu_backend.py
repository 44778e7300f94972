"""Attention on CPUs: decode and KV writes by the C++ kernels, prefill by torch's flash attention.

Shape suffixes: see `attention.backend`; Q rows of one prefill span, L tokens of its sequence.
"""

import torch
from torch import Tensor
from torch.nn import functional

from kvasir_runtime.attention.metadata import AttentionMetadata, AttentionSpec, PrefillSpan
from kvasir_runtime.attention.reference import ReferenceBackend, attend, gather, visible
from kvasir_runtime.kernels.cpu.library import Library
from kvasir_runtime.models.config import DecoderConfig


class CpuBackend(ReferenceBackend):
    """For float32 and bfloat16; head dimensions that are multiples of 16, up to 256."""

    name = "cpu"

    def __init__(self, library: Library) -> None:
        self._library = library

    def write_kv(
        self, q_THC: Tensor, k_TKC: Tensor, v_TKC: Tensor, cos_sin_LC: Tensor, kv_2BKSC: Tensor, step: AttentionMetadata
    ) -> Tensor:
        rows, heads, head_dim = q_THC.shape
        _, blocks, kv_heads, block_size, _ = kv_2BKSC.shape
        out_THC = q_THC.new_empty(q_THC.shape)
        self._library.write_kv(
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
        out_NHC = torch.empty_like(q_NHC)
        self._library.decode(
            q_NHC.dtype is torch.bfloat16,
            q_NHC.data_ptr(),
            kv_2BKSC.data_ptr(),
            step.block_tables_NM.data_ptr(),
            step.lengths_N.data_ptr(),
            out_NHC.data_ptr(),
            q_NHC.shape[0],
            spec.num_heads,
            spec.num_kv_heads,
            spec.head_dim,
            kv_2BKSC.shape[1],
            kv_2BKSC.shape[3],
            step.block_tables_NM.shape[1],
            spec.scale,
            spec.softcap or 0.0,
            spec.window or 0,
            torch.get_num_threads(),
        )
        return out_NHC

    def prefill(self, q_PHC: Tensor, kv_2BKSC: Tensor, spec: AttentionSpec, step: AttentionMetadata) -> Tensor:
        out_PHC = torch.empty_like(q_PHC)
        for span in step.prefills:
            rows = slice(span.start - step.num_decodes, span.end - step.num_decodes)
            out_PHC[rows] = _attend_span(q_PHC[rows], kv_2BKSC, spec, span)
        return out_PHC


def _attend_span(q_QHC: Tensor, kv_2BKSC: Tensor, spec: AttentionSpec, span: PrefillSpan) -> Tensor:
    k_KLC, v_KLC = gather(kv_2BKSC, span.block_table_M, span.length)
    if spec.softcap is not None:  # torch's kernel has no soft-capping
        return attend(q_QHC, k_KLC, v_KLC, spec)
    rows = q_QHC.shape[0]
    whole = rows == span.length and (spec.window is None or span.length <= spec.window)
    out_1HQC = functional.scaled_dot_product_attention(
        q_QHC.transpose(0, 1)[None],
        k_KLC[None],
        v_KLC[None],
        attn_mask=None if whole else visible(rows, span.length, spec.window),
        is_causal=whole,
        scale=spec.scale,
        enable_gqa=spec.group > 1,
    )
    return out_1HQC[0].transpose(0, 1)


def supports(library: Library, config: DecoderConfig, dtype: torch.dtype) -> bool:
    """Whether the kernels can serve this shape; the reference serves the others."""
    return (
        dtype in (torch.float32, torch.bfloat16)
        and config.head_dim <= 256
        and config.head_dim % 16 == 0
        and config.num_heads // config.num_kv_heads <= library.max_group
    )
