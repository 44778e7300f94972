"""Qwen 2 and 2.5: biases on query, key and value; a window in the upper layers where the checkpoint turns it on."""

from kvasir_runtime.models.config import DecoderConfig, HFConfig, decoder_config, windows_by_layer


def config(hf: HFConfig) -> DecoderConfig:
    return decoder_config(hf, attention_bias=True, windows=windows(hf))


def windows(hf: HFConfig) -> tuple[int | None, ...]:
    layers = hf.positive("num_hidden_layers")
    if not hf.get("use_sliding_window", bool, False):
        return (None,) * layers
    first = hf.get("max_window_layers", int, layers)
    return windows_by_layer(hf, hf.optional("sliding_window", int), [layer >= first for layer in range(layers)])
