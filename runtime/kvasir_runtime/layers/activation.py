"""Gated activations: the first half of the features, activated, times the second."""

from collections.abc import Callable
from typing import Final

from torch import Tensor
from torch.nn import functional


def silu_and_mul(x_RF: Tensor) -> Tensor:
    gate, up = x_RF.chunk(2, dim=-1)
    return functional.silu(gate) * up


def gelu_tanh_and_mul(x_RF: Tensor) -> Tensor:
    gate, up = x_RF.chunk(2, dim=-1)
    return functional.gelu(gate, approximate="tanh") * up


GATED_ACTIVATIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "silu": silu_and_mul,
    "gelu_pytorch_tanh": gelu_tanh_and_mul,
}
"""By the name that config.json gives in `hidden_act` or `hidden_activation`."""
