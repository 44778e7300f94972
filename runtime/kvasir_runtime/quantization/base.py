"""The one interface of weight formats: a weight is packed once at load and then applied to activations.

Shape suffixes: R rows, I input features, O output features.
"""

from typing import Protocol

from torch import Tensor


class PackedLinear(Protocol):
    """A weight in the form that its kernel reads. `nbytes` is what it takes in memory."""

    nbytes: int

    def __call__(self, x_RI: Tensor) -> Tensor:
        """`x Wᵀ + b`: `[R, O]` in the activations' dtype."""


class LinearMethod(Protocol):
    """A weight format.

    `name` is what `quantization` in the settings says; `copies` tells whether a packed weight is memory of its own.
    """

    name: str
    copies: bool

    def pack(self, weight_OI: Tensor, bias_O: Tensor | None) -> PackedLinear:
        """Take over a weight, which is the result's to keep; a packed form does not refer to it any more."""

    def gates(self, outputs: int, inputs: int) -> bool:  # noqa: ARG002 - most formats never do
        """Whether `pack_silu_gated` takes weights of that shape."""
        return False

    def pack_silu_gated(self, gate_OI: Tensor, gated_OI: Tensor) -> PackedLinear:
        """`silu(x Gᵀ) * (x Wᵀ)` in one: `[R, O]`."""
        msg = f"{self.name} gates nothing, got weights of {tuple(gate_OI.shape)} and {tuple(gated_OI.shape)}"
        raise TypeError(msg)
