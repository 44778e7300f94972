"""Models that weigh nothing: the files that say what a model is, and weights without content."""

import json
from pathlib import Path
from typing import Any

CONFIGS: dict[str, tuple[dict[str, Any], int]] = {
    "gemma-2-27b": (
        {
            "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "num_hidden_layers": 46,
            "hidden_size": 4608, "intermediate_size": 36864, "num_attention_heads": 32, "num_key_value_heads": 16,
            "head_dim": 128, "vocab_size": 256000, "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
        },
        54_454_256_640,
    ),
    "llama-3.1-70b": (
        {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 80,
            "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8,
            "vocab_size": 128256, "max_position_embeddings": 131072, "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        },
        141_107_412_992,
    ),
}  # fmt: skip
"""Public models by name: what their config.json says, and the bytes of their weights."""


def write_model(folder: Path, name: str) -> Path:
    """A folder that looks like the public model, with a weight file of its size that takes no disk."""
    config, size = CONFIGS[name]
    model = folder / name
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps(config))
    with (model / "model.safetensors").open("wb") as weights:
        weights.truncate(size)
    return model
