"""The gated feed-forward network of one layer."""

from typing import Protocol

from torch import Tensor

from kvasir_runtime.layers.linear import LoadContext
from kvasir_runtime.models.config import DecoderConfig


class FeedForward(Protocol):
    """What a layer has besides attention: `[T, D]` to `[T, D]`, each row by itself."""

    def __call__(self, x_TD: Tensor) -> Tensor: ...


class GatedMLP:
    """`down(act(gate(x)) * up(x))`, gate and up in one matrix multiplication. The names are those of the tensors."""

    def __init__(
        self,
        config: DecoderConfig,
        load: LoadContext,
        prefix: str,
        *,
        gate: str = "gate_proj",
        up: str = "up_proj",
        down: str = "down_proj",
    ) -> None:
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_up = load.linear([f"{prefix}.{gate}", f"{prefix}.{up}"], hidden, [inner, inner], bias=bias)
        self.activate = {"silu": load.ops.silu_and_mul, "gelu_pytorch_tanh": load.ops.gelu_tanh_and_mul}[
            config.activation
        ]
        self.down = load.linear([f"{prefix}.{down}"], inner, [hidden], bias=bias)

    def __call__(self, x_TD: Tensor) -> Tensor:
        return self.down(self.activate(self.gate_up(x_TD)))
