"""Llama 2 and 3, and checkpoints of the same architecture."""

from kvasir_runtime.models.config import DecoderConfig, HFConfig, decoder_config


def config(hf: HFConfig) -> DecoderConfig:
    bias = hf.get("attention_bias", bool, False)
    if hf.get("hidden_act", str, "silu") != "silu":
        raise hf.refuse("hidden_act", "silu")
    return decoder_config(
        hf,
        norm_eps=hf.get("rms_norm_eps", float, 1e-6),
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=hf.get("mlp_bias", bool, False),
    )
