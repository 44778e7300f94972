"""The gated feed-forward network of one layer."""

from torch import Tensor

from kvasir_runtime.layers.activation import GATED_ACTIVATIONS
from kvasir_runtime.layers.linear import LoadContext
from kvasir_runtime.models.config import DecoderConfig


class GatedMLP:
    """`down(act(gate(x)) * up(x))`, gate and up in one matrix multiplication."""

    def __init__(self, config: DecoderConfig, load: LoadContext, prefix: str) -> None:
        hidden, inner = config.hidden_size, config.intermediate_size
        names = [f"{prefix}.gate_proj", f"{prefix}.up_proj"]
        self.gate_up = load.linear(names, hidden, [inner, inner], bias=config.mlp_bias)
        self.activate = GATED_ACTIVATIONS[config.activation]
        self.down = load.linear([f"{prefix}.down_proj"], inner, [hidden], bias=config.mlp_bias)

    def __call__(self, x_TD: Tensor) -> Tensor:
        return self.down(self.activate(self.gate_up(x_TD)))
