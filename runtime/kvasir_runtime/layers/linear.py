"""Linear layers, loaded straight from checkpoint tensors into one fused, packed weight."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvasir_runtime.layers.ops import Ops, TorchOps
from kvasir_runtime.lora.runtime import LoraRuntime
from kvasir_runtime.models.checkpoint import Checkpoint
from kvasir_runtime.quantization.base import LinearMethod, PackedLinear


@dataclass(frozen=True)
class LoadContext:
    """Where weights come from and what they become."""

    checkpoint: Checkpoint
    dtype: torch.dtype
    method: LinearMethod
    ops: Ops = field(default_factory=TorchOps)
    lora: LoraRuntime | None = None
    """What adds adapters to the linear layers; None where there are none."""
    taken: list[int] = field(default_factory=list)
    """Bytes of each weight that was loaded."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def load(self, name: str, *shape: int) -> Tensor:
        """A tensor in the engine's dtype, in memory of its own."""
        tensor = self.checkpoint.tensor(name, shape).to(self.device, self.dtype, copy=True)
        self.taken.append(tensor.nbytes)
        return tensor

    def norm(self, name: str, size: int) -> Tensor:
        """A norm's weight as the checkpoint in the engine's dtype has it, kept in float32."""
        tensor = self.checkpoint.tensor(name, (size,)).to(self.device, self.dtype, copy=True).float()
        self.taken.append(tensor.nbytes)
        return tensor

    def pack(self, weight_OI: Tensor, bias_O: Tensor | None) -> PackedLinear:
        """A weight in the form of this device and quantization."""
        packed = self.method.pack(weight_OI, bias_O)
        self.taken.append(packed.nbytes)
        return packed

    def pack_again(self, weight_OI: Tensor) -> PackedLinear:
        """As `pack`, for a weight that is in use elsewhere as it is."""
        packed = self.method.pack(weight_OI, None)
        self.taken.append(packed.nbytes if self.method.copies else 0)
        return packed

    def silu_gated(self, gate: str, gated: str, in_features: int, out_features: int) -> PackedLinear | None:
        """`silu(gate(x)) * gated(x)` in one, without biases; None where it has to be put together."""
        if self.lora is not None or not self.method.gates(out_features, in_features):
            return None
        shape = (out_features, in_features)
        weights = [self.checkpoint.tensor(f"{name}.weight", shape).to(self.dtype) for name in (gate, gated)]
        packed = self.method.pack_silu_gated(*weights)
        self.taken.append(packed.nbytes)
        return packed

    def linear(
        self, names: Sequence[str], in_features: int, out_features: Sequence[int], *, bias: bool
    ) -> PackedLinear:
        """One linear layer from the tensors `<name>.weight` (and `.bias`), stacked along the output."""
        tensor = self.checkpoint.tensor
        pairs = list(zip(names, out_features, strict=True))
        weights = [tensor(f"{name}.weight", (size, in_features)).to(self.device, self.dtype) for name, size in pairs]
        biases = [tensor(f"{name}.bias", (size,)).to(self.device) for name, size in pairs] if bias else []
        packed = self.pack(
            torch.cat(weights),  # copies, even a single one: the file stays mapped no longer than loading takes
            torch.cat(biases).to(self.dtype) if biases else None,
        )
        return packed if self.lora is None else self.lora.wrap(packed, names, out_features)
