"""Linear layers, loaded straight from checkpoint tensors into one fused, packed weight."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvasir_runtime.layers.ops import Ops, TorchOps
from kvasir_runtime.models.checkpoint import Checkpoint
from kvasir_runtime.quantization.base import LinearMethod, PackedLinear


@dataclass(frozen=True)
class LoadContext:
    """Where weights come from and what they become."""

    checkpoint: Checkpoint
    dtype: torch.dtype
    method: LinearMethod
    ops: Ops = field(default_factory=TorchOps)

    def load(self, name: str, *shape: int) -> Tensor:
        """A tensor in the engine's dtype, in memory of its own."""
        return self.checkpoint.tensor(name, shape).to(self.dtype, copy=True)

    def linear(
        self, names: Sequence[str], in_features: int, out_features: Sequence[int], *, bias: bool
    ) -> PackedLinear:
        """One linear layer from the tensors `<name>.weight` (and `.bias`), stacked along the output."""
        tensor = self.checkpoint.tensor
        pairs = list(zip(names, out_features, strict=True))
        weights = [tensor(f"{name}.weight", (size, in_features)).to(self.dtype) for name, size in pairs]
        biases = [tensor(f"{name}.bias", (size,)) for name, size in pairs] if bias else []
        return self.method.pack(
            torch.cat(weights),  # copies, even a single one: the file stays mapped no longer than loading takes
            torch.cat(biases).to(self.dtype) if biases else None,
        )
