"""Qwen 3: each head's query and key are normalised before RoPE."""

from kvasir_runtime.models import qwen2
from kvasir_runtime.models.config import DecoderConfig, HFConfig, decoder_config


def config(hf: HFConfig) -> DecoderConfig:
    bias = hf.get("attention_bias", bool, False)
    return decoder_config(hf, attention_bias=bias, output_bias=bias, qk_norm=True, windows=qwen2.windows(hf))
