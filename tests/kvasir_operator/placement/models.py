"""Public models as their config.json has them, with what was counted by hand.

Keys that memory does not depend on are left out. `parameters` is the number on the model's page in the hub, norms and
biases included; `norms` and `biases` are the part of it that is neither a projection nor a table.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PublicModel:
    """A config.json, and its numbers."""

    name: str
    config: dict[str, Any]
    parameters: int
    norms: int
    biases: int
    kv_bytes_per_token: int
    """Of bfloat16."""


def config(
    model_type: str, layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int, vocab: int, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "torch_dtype": "bfloat16",
        **more,
    }


LONG = {"max_position_embeddings": 131072}
TIED = {"tie_word_embeddings": True}
MODELS = [
    PublicModel(
        "Llama-3.2-1B",
        config("llama", 16, 2048, 8192, 32, 8, 128256, head_dim=64, **LONG, **TIED),
        1_235_814_400, 33 * 2048, 0, 2 * 16 * 512 * 2,
    ),
    PublicModel(
        "Llama-3.2-3B",
        config("llama", 28, 3072, 8192, 24, 8, 128256, head_dim=128, **LONG, **TIED),
        3_212_749_824, 57 * 3072, 0, 2 * 28 * 1024 * 2,
    ),
    PublicModel(
        "Llama-3.1-8B",
        config("llama", 32, 4096, 14336, 32, 8, 128256, tie_word_embeddings=False, **LONG),
        8_030_261_248, 65 * 4096, 0, 2 * 32 * 1024 * 2,
    ),
    PublicModel(
        "Llama-3.1-70B",
        config("llama", 80, 8192, 28672, 64, 8, 128256, tie_word_embeddings=False, **LONG),
        70_553_706_496, 161 * 8192, 0, 2 * 80 * 1024 * 2,
    ),
    PublicModel(
        "Mistral-7B-v0.1",
        config("mistral", 32, 4096, 14336, 32, 8, 32000, max_position_embeddings=32768, tie_word_embeddings=False),
        7_241_732_096, 65 * 4096, 0, 2 * 32 * 1024 * 2,
    ),
    PublicModel(
        "Mixtral-8x7B-v0.1",
        config("mixtral", 32, 4096, 14336, 32, 8, 32000, num_local_experts=8, max_position_embeddings=32768),
        46_702_792_704, 65 * 4096, 0, 2 * 32 * 1024 * 2,
    ),
    PublicModel(
        "Qwen2.5-0.5B",
        config("qwen2", 24, 896, 4864, 14, 2, 151936, max_position_embeddings=32768, **TIED),
        494_032_768, 49 * 896, 24 * 1152, 2 * 24 * 128 * 2,
    ),
    PublicModel(
        "Qwen2.5-7B",
        config("qwen2", 28, 3584, 18944, 28, 4, 152064, tie_word_embeddings=False, **LONG),
        7_615_616_512, 57 * 3584, 28 * 4608, 2 * 28 * 512 * 2,
    ),
    PublicModel(
        "Qwen2.5-72B",
        config("qwen2", 80, 8192, 29568, 64, 8, 152064, tie_word_embeddings=False, **LONG),
        72_706_203_648, 161 * 8192, 80 * 10240, 2 * 80 * 1024 * 2,
    ),
    PublicModel(
        "Gemma-2-2B",
        config("gemma2", 26, 2304, 9216, 8, 4, 256000, head_dim=256, max_position_embeddings=8192),
        2_614_341_888, 105 * 2304, 0, 2 * 26 * 1024 * 2,
    ),
    PublicModel(
        "Gemma-2-9B",
        config("gemma2", 42, 3584, 14336, 16, 8, 256000, head_dim=256, max_position_embeddings=8192),
        9_241_705_984, 169 * 3584, 0, 2 * 42 * 2048 * 2,
    ),
    PublicModel(
        "Gemma-2-27B",
        config("gemma2", 46, 4608, 36864, 32, 16, 256000, head_dim=128, max_position_embeddings=8192),
        27_227_128_320, 185 * 4608, 0, 2 * 46 * 2048 * 2,
    ),
]  # fmt: skip
BY_NAME = {model.name: model for model in MODELS}
