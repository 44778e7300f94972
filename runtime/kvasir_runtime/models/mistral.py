"""Mistral: Llama with a sliding window in every layer (the first releases) or in none (the later ones)."""

from kvasir_runtime.models.config import DecoderConfig, HFConfig, decoder_config


def config(hf: HFConfig) -> DecoderConfig:
    return decoder_config(hf, windows=(hf.optional("sliding_window", int),) * hf.positive("num_hidden_layers"))
