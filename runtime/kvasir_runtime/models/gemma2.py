"""Gemma 2: norms around attention and MLP, soft-capped scores and logits, a window in every other layer."""

from torch import Tensor

from kvasir_runtime.attention.backend import AttentionBackend
from kvasir_runtime.attention.metadata import AttentionMetadata
from kvasir_runtime.layers.attention import Attention
from kvasir_runtime.layers.linear import LoadContext
from kvasir_runtime.layers.mlp import GatedMLP
from kvasir_runtime.models.config import DecoderConfig, HFConfig, decoder_config, windows_by_layer
from kvasir_runtime.models.decoder import DecoderLayer, DecoderModel, load_norm


def config(hf: HFConfig) -> DecoderConfig:
    layers = hf.positive("num_hidden_layers")
    return decoder_config(
        hf,
        **shared(hf),
        attention_softcap=hf.optional("attn_logit_softcapping", float),
        final_softcap=hf.optional("final_logit_softcapping", float),
        windows=windows_by_layer(hf, hf.get("sliding_window", int, 4096), [layer % 2 == 0 for layer in range(layers)]),
    )


def shared(hf: HFConfig) -> dict[str, object]:
    """What Gemma 2 and 3 have in common, with the defaults of their configurations."""
    bias = hf.get("attention_bias", bool, False)
    return {
        "head_dim": hf.positive("head_dim", 256),
        "tie_embeddings": hf.get("tie_word_embeddings", bool, True),
        "activation": hf.get("hidden_activation", str, "gelu_pytorch_tanh"),
        "attention_scale": hf.get("query_pre_attn_scalar", float, 256.0) ** -0.5,
        "attention_bias": bias,
        "output_bias": bias,
        "norm_offset": 1.0,
        "embedding_scale": hf.positive("hidden_size") ** 0.5,
    }


class Gemma2Layer(DecoderLayer):
    """Attention and MLP each between two norms, then added to the residual stream."""

    def __init__(
        self, config: DecoderConfig, load: LoadContext, layer: int, cos_sin_LC: Tensor, backend: AttentionBackend
    ) -> None:
        prefix = f"model.layers.{layer}"
        self.attention_norm = load_norm(config, load, f"{prefix}.input_layernorm")
        self.attention = Attention(config, load, f"{prefix}.self_attn", layer, cos_sin_LC, backend)
        self.attended_norm = load_norm(config, load, f"{prefix}.post_attention_layernorm")
        self.mlp_norm = load_norm(config, load, f"{prefix}.pre_feedforward_layernorm")
        self.mlp = GatedMLP(config, load, f"{prefix}.mlp")
        self.fed_norm = load_norm(config, load, f"{prefix}.post_feedforward_layernorm")

    def __call__(
        self, x_TD: Tensor, residual_TD: Tensor | None, kv_2BKSC: Tensor, step: AttentionMetadata
    ) -> tuple[Tensor, Tensor]:
        normed_TD, residual_TD = self.enter(x_TD, residual_TD)
        attended_TD = self.attended_norm(self.attention(normed_TD, kv_2BKSC, step))
        normed_TD, residual_TD = self.mlp_norm.add_and_norm(attended_TD, residual_TD)
        return self.fed_norm(self.mlp(normed_TD)), residual_TD


class Gemma2Model(DecoderModel):
    layer_class = Gemma2Layer
