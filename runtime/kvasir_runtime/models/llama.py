"""Llama 2 and 3, and checkpoints of the same architecture."""

from kvasir_runtime.models.config import DecoderConfig, HFConfig, decoder_config


def config(hf: HFConfig) -> DecoderConfig:
    bias = hf.get("attention_bias", bool, False)
    return decoder_config(hf, attention_bias=bias, output_bias=bias, mlp_bias=hf.get("mlp_bias", bool, False))
