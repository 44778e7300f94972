"""The benchmark's model: a Llama of 0.3 billion parameters."""

from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True)
class LlamaShape:
    """Sizes of a Llama with tied embeddings and grouped-query attention."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    max_positions: int = 4096
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """The matrices of one layer as an engine multiplies by them, fused where inputs are shared: (out, in)."""
        return {
            "qkv": ((self.heads + 2 * self.kv_heads) * self.head_dim, self.hidden),
            "output": (self.hidden, self.heads * self.head_dim),
            "gate_up": (2 * self.ffn, self.hidden),
            "down": (self.hidden, self.ffn),
        }

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer's matrices."""
        return sum(rows * columns for rows, columns in self.projections.values())

    @property
    def parameters(self) -> int:
        norms = (2 * self.layers + 1) * self.hidden
        return self.layers * self.layer_parameters + self.vocabulary * self.hidden + norms

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in all layers, two bytes each."""
        return 2 * self.layers * self.kv_heads * self.head_dim * 2

    def hugging_face_config(self) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.ffn,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.max_positions,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.rms_norm_eps,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "bos_token_id": 0,
            "eos_token_id": 1,
        }

    @classmethod
    def from_hugging_face(cls, config: dict[str, Any]) -> "LlamaShape":
        """Read back what `hugging_face_config` wrote."""
        return cls(
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            head_dim=config["head_dim"],
            ffn=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            max_positions=config["max_position_embeddings"],
            rope_theta=config["rope_theta"],
            rms_norm_eps=config["rms_norm_eps"],
        )


LLAMA_300M: Final = LlamaShape(hidden=1024, layers=24, heads=16, kv_heads=4, head_dim=64, ffn=2816, vocabulary=32_000)
