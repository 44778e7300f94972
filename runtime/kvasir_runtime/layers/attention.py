"""Self-attention of one layer: projections around the attention backend."""

import torch
from torch import Tensor

from kvasir_runtime.attention.backend import AttentionBackend
from kvasir_runtime.attention.metadata import AttentionMetadata, AttentionSpec
from kvasir_runtime.layers.linear import LoadContext
from kvasir_runtime.layers.norm import RMSNorm
from kvasir_runtime.models.config import DecoderConfig


class Attention:
    """Grouped-query attention with RoPE over a paged cache."""

    def __init__(
        self,
        config: DecoderConfig,
        load: LoadContext,
        prefix: str,
        layer: int,
        cos_sin_LC: Tensor,
        backend: AttentionBackend,
    ) -> None:
        self.spec = AttentionSpec(
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            scale=config.attention_scale,
            window=config.windows[layer],
            softcap=config.attention_softcap,
        )
        self.backend = backend
        self.cos_sin_LC = cos_sin_LC
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        names = [f"{prefix}.{name}_proj" for name in "qkv"]
        self.qkv = load.linear(names, config.hidden_size, [q_size, kv_size, kv_size], bias=config.attention_bias)
        self.out = load.linear([f"{prefix}.o_proj"], q_size, [config.hidden_size], bias=config.output_bias)
        self.q_norm = self._head_norm(config, load, f"{prefix}.q_norm.weight")
        self.k_norm = self._head_norm(config, load, f"{prefix}.k_norm.weight")

    @staticmethod
    def _head_norm(config: DecoderConfig, load: LoadContext, name: str) -> RMSNorm | None:
        if not config.qk_norm:
            return None
        return RMSNorm(load.norm(name, config.head_dim), config.norm_eps, load.ops, config.norm_offset)

    def __call__(self, x_TD: Tensor, kv_2BKSC: Tensor, step: AttentionMetadata) -> Tensor:
        spec = self.spec
        heads = self.qkv(x_TD).view(len(x_TD), -1, spec.head_dim)
        q_THC, k_TKC, v_TKC = heads.split([spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q_THC, k_TKC = self.q_norm(q_THC), self.k_norm(k_TKC)
        q_THC = self.backend.write_kv(q_THC, k_TKC, v_TKC, self.cos_sin_LC, kv_2BKSC, step)
        return self.out(self._attend(q_THC, kv_2BKSC, step).flatten(1))

    def _attend(self, q_THC: Tensor, kv_2BKSC: Tensor, step: AttentionMetadata) -> Tensor:
        singles = len(step.decodes)
        if len(step.prefills) == 0:
            return self.backend.decode(q_THC, kv_2BKSC, self.spec, step)
        if singles == 0:
            return self.backend.prefill(q_THC, kv_2BKSC, self.spec, step)
        decoded = self.backend.decode(q_THC[:singles], kv_2BKSC, self.spec, step)
        return torch.cat((decoded, self.backend.prefill(q_THC[singles:], kv_2BKSC, self.spec, step)))
