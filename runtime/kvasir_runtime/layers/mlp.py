"""The gated feed-forward network of one layer."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from kvasir_runtime.layers.linear import LoadContext
from kvasir_runtime.models.config import DecoderConfig


class FeedForward(Protocol):
    """What a layer has besides attention: `[T, D]` to `[T, D]`, each row by itself."""

    def __call__(self, x_TD: Tensor) -> Tensor: ...


class GatedMLP:
    """`down(act(gate(x)) * up(x))`, gate and up in one matrix multiplication. The names are those of the tensors.

    `activate` is None where the multiplication does that, too.
    """

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
        gate, up, down = (f"{prefix}.{name}" for name in (gate, up, down))
        fused = load.silu_gated(gate, up, hidden, inner) if config.activation == "silu" and not bias else None
        self.gate_up = fused or load.linear([gate, up], hidden, [inner, inner], bias=bias)
        self.activate = None if fused else _activation(config, load)
        self.down = load.linear([down], inner, [hidden], bias=bias)

    def __call__(self, x_TD: Tensor) -> Tensor:
        inner_TF = self.gate_up(x_TD)
        return self.down(self.activate(inner_TF) if self.activate else inner_TF)


def _activation(config: DecoderConfig, load: LoadContext) -> Callable[[Tensor], Tensor]:
    return {"silu": load.ops.silu_and_mul, "gelu_pytorch_tanh": load.ops.gelu_tanh_and_mul}[config.activation]
