"""Gemma 3, text: Gemma 2 with normalised queries and keys, no soft-capping, and a RoPE of its own for local layers."""

from kvasir_runtime.models.config import (
    DecoderConfig,
    HFConfig,
    RopeConfig,
    decoder_config,
    rope_config,
    windows_by_layer,
)
from kvasir_runtime.models.gemma2 import shared


def config(hf: HFConfig) -> DecoderConfig:
    layers, pattern = hf.positive("num_hidden_layers"), hf.positive("sliding_window_pattern", 6)
    if hf.values.get("use_bidirectional_attention"):
        raise hf.refuse("use_bidirectional_attention", "false")
    rope, local_rope = ropes(hf)
    return decoder_config(
        hf,
        **shared(hf),
        qk_norm=True,
        rope=rope,
        local_rope=local_rope,
        max_position=hf.positive("max_position_embeddings", 131072),
        attention_softcap=hf.optional("attn_logit_softcapping", float),
        final_softcap=hf.optional("final_logit_softcapping", float),
        windows=windows_by_layer(
            hf, hf.get("sliding_window", int, 4096), [(layer + 1) % pattern != 0 for layer in range(layers)]
        ),
    )


def ropes(hf: HFConfig) -> tuple[RopeConfig, RopeConfig]:
    """Those of global and local layers, in today's form (by layer type) or the older one."""
    settings = hf.values.get("rope_parameters")
    if isinstance(settings, dict) and "full_attention" in settings:
        return tuple(rope_config(hf, settings[kind]) for kind in ("full_attention", "sliding_attention"))  # type: ignore[return-value]
    whole = rope_config(hf, theta=hf.get("rope_theta", float, 1_000_000.0))
    return whole, RopeConfig(hf.get("rope_local_base_freq", float, 10_000.0))
