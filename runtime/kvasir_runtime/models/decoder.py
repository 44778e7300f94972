"""The decoder-only transformer that all families are made of.

Shape suffixes: T rows of a step, D hidden size, R rows whose logits are wanted, V vocabulary; others as in
`attention.backend`.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from kvasir_runtime.attention.backend import AttentionBackend
from kvasir_runtime.attention.metadata import AttentionMetadata
from kvasir_runtime.layers.attention import Attention
from kvasir_runtime.layers.linear import LoadContext
from kvasir_runtime.layers.mlp import FeedForward, GatedMLP
from kvasir_runtime.layers.norm import RMSNorm
from kvasir_runtime.layers.rotary import cos_sin_table
from kvasir_runtime.models.config import DecoderConfig, RopeConfig


class DecoderLayer:
    """Norm before attention and before the MLP, residuals around both."""

    def __init__(
        self, config: DecoderConfig, load: LoadContext, layer: int, cos_sin_LC: Tensor, backend: AttentionBackend
    ) -> None:
        prefix = f"model.layers.{layer}"
        self.attention_norm = load_norm(config, load, f"{prefix}.input_layernorm")
        self.attention = Attention(config, load, f"{prefix}.self_attn", layer, cos_sin_LC, backend)
        self.mlp_norm = load_norm(config, load, f"{prefix}.post_attention_layernorm")
        self.mlp = self.make_mlp(config, load, prefix)

    def make_mlp(self, config: DecoderConfig, load: LoadContext, prefix: str) -> FeedForward:
        return GatedMLP(config, load, f"{prefix}.mlp")

    def __call__(
        self, x_TD: Tensor, residual_TD: Tensor | None, kv_2BKSC: Tensor, step: AttentionMetadata
    ) -> tuple[Tensor, Tensor]:
        """Takes and returns (the last block's output, the residual stream before it): the next norm adds them."""
        normed_TD, residual_TD = self.enter(x_TD, residual_TD)
        attended_TD = self.attention(normed_TD, kv_2BKSC, step)
        normed_TD, residual_TD = self.mlp_norm.add_and_norm(attended_TD, residual_TD)
        return self.mlp(normed_TD), residual_TD

    def enter(self, x_TD: Tensor, residual_TD: Tensor | None) -> tuple[Tensor, Tensor]:
        """The layer's first norm, after adding what the layer before left to be added."""
        if residual_TD is None:
            return self.attention_norm(x_TD), x_TD
        return self.attention_norm.add_and_norm(x_TD, residual_TD)


class DecoderModel:
    """Embedding, layers, final norm and output projection. Families replace `layer_class`."""

    layer_class: type[DecoderLayer] = DecoderLayer

    fused: Callable[[Tensor, list[Tensor], AttentionMetadata], tuple[Tensor, Tensor]] | None = None
    """Computes all layers at once, where the device has something that does."""

    def __init__(self, config: DecoderConfig, load: LoadContext, backend: AttentionBackend, max_model_len: int) -> None:
        self.config = config
        vocab, hidden = config.vocab_size, config.hidden_size
        self.embedding_VD = load.load("model.embed_tokens.weight", vocab, hidden)
        tables = {
            rope: cos_sin_table(rope, config.head_dim, max_model_len).to(load.device)
            for rope in {config.rope, config.local_rope or config.rope}
        }
        self.layers = [
            self.layer_class(config, load, layer, tables[layer_rope(config, layer)], backend)
            for layer in range(config.num_layers)
        ]
        self.norm = load_norm(config, load, "model.norm")
        if config.tie_embeddings:
            load.checkpoint.ignore("lm_head.weight")
            self.head = load.pack_again(self.embedding_VD)
        else:
            self.head = load.linear(["lm_head"], hidden, [vocab], bias=False)
        self.nbytes = sum(load.taken)

    def __call__(self, input_ids_T: Tensor, kv_cache: list[Tensor], step: AttentionMetadata) -> Tensor:
        """Hidden states before the output projection: `[T, D]`. Writes the step's keys and values to `kv_cache`."""
        x_TD = functional.embedding(input_ids_T, self.embedding_VD)
        if self.config.embedding_scale != 1.0:
            x_TD = x_TD * torch.tensor(self.config.embedding_scale, dtype=x_TD.dtype)
        run = self.fused or self._one_by_one
        return self.norm.add_and_norm(*run(x_TD, kv_cache, step))[0]

    def _one_by_one(self, x_TD: Tensor, kv_cache: list[Tensor], step: AttentionMetadata) -> tuple[Tensor, Tensor]:
        residual_TD: Tensor | None = None
        for layer, kv_2BKSC in zip(self.layers, kv_cache, strict=True):
            x_TD, residual_TD = layer(x_TD, residual_TD, kv_2BKSC, step)
        assert residual_TD is not None
        return x_TD, residual_TD

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """`[R, V]` in float32."""
        logits_RV = self.head(hidden_RD).float()
        if self.config.final_softcap is None:
            return logits_RV
        return torch.tanh(logits_RV / self.config.final_softcap) * self.config.final_softcap


def load_norm(config: DecoderConfig, load: LoadContext, prefix: str) -> RMSNorm:
    return RMSNorm(load.norm(f"{prefix}.weight", config.hidden_size), config.norm_eps, load.ops, config.norm_offset)


def layer_rope(config: DecoderConfig, layer: int) -> RopeConfig:
    """The layer's own RoPE: layers with a window may have another one."""
    if config.local_rope is not None and config.windows[layer] is not None:
        return config.local_rope
    return config.rope
