"""The adapters as the model computes with them: which layers they change, and what lies in which slot.

Not thread-safe: whoever steps the model calls it, between steps. Images are read elsewhere and handed over whole.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from kvasir_runtime.lora.batch import LoraBatch, group_rows
from kvasir_runtime.lora.image import AdapterImage, Matrices
from kvasir_runtime.lora.kernels import LoraKernel, LoraSlots
from kvasir_runtime.quantization.base import PackedLinear


@dataclass(frozen=True)
class LoraLayer:
    """One fused layer: the modules it is made of, in order, and the slots' matrices for it."""

    names: tuple[str, ...]
    slots: LoraSlots


class LoraRuntime:
    """Slots of all layers. `batch` is the step's, None when none of its rows has an adapter."""

    def __init__(self, num_slots: int, kernel: LoraKernel, targets: frozenset[str]) -> None:
        self.num_slots = num_slots
        self.kernel = kernel
        self.targets = targets
        self.batch: LoraBatch | None = None
        self._layers: dict[tuple[str, ...], LoraLayer] = {}
        self._images: dict[str, AdapterImage] = {}
        self._active: list[str | None] = [None] * num_slots

    def wrap(self, base: PackedLinear, names: Sequence[str], outputs: Sequence[int]) -> PackedLinear:
        """The layer with adapters, if any of its modules may have one; the same layer may come again on a reload."""
        key = tuple(names)
        if not self.targets.issuperset(key):
            return base
        layer = self._layers.setdefault(key, LoraLayer(key, LoraSlots(list(outputs), self.num_slots)))
        return LoraLinear(base, layer.slots, self)

    @property
    def nbytes(self) -> int:
        """Memory of all images."""
        return sum(image.nbytes for image in self._images.values())

    @property
    def width(self) -> int:
        """Most ranks that an adapter has in all parts of a layer together."""
        return max((layer.slots.width for layer in self._layers.values()), default=0)

    def bytes_of(self, digest: str) -> int:
        return self._images[digest].nbytes if digest in self._images else 0

    def add(self, image: AdapterImage) -> None:
        self._images[image.digest] = image

    def activate(self, slot: int, digest: str) -> None:
        """Let `slot` be that adapter, whose image was added. The image itself is computed with: no bytes move."""
        self._active[slot] = digest
        self._put(slot, self._images[digest].modules)

    def drop(self, digest: str) -> None:
        """Forget an adapter that no row uses any more; its memory goes back to the system."""
        for slot, active in enumerate(self._active):
            if active == digest:
                self._active[slot] = None
                self._put(slot, {})
        self._images.pop(digest, None)

    def prepare(self, slots_T: npt.NDArray[np.int64]) -> None:
        """Group the next step's rows."""
        self.batch = group_rows(slots_T)

    def _put(self, slot: int, modules: Mapping[str, Matrices]) -> None:
        for layer in self._layers.values():
            layer.slots.put(slot, [modules.get(name) for name in layer.names])


class LoraLinear:
    """A linear layer of any format, to whose output the step's adapters are added."""

    def __init__(self, base: PackedLinear, slots: LoraSlots, runtime: LoraRuntime) -> None:
        self.nbytes = base.nbytes
        self.base = base
        self.slots = slots
        self._runtime = runtime

    def __call__(self, x_RI: Tensor) -> Tensor:
        out_RO = self.base(x_RI)
        batch = self._runtime.batch
        if batch is not None:
            x_RI = x_RI if x_RI.stride(-1) == 1 else x_RI.contiguous()
            self._runtime.kernel(x_RI, out_RO, batch, self.slots)
        return out_RO


def base_of(linear: PackedLinear) -> PackedLinear:
    """A layer without its adapters."""
    return linear.base if isinstance(linear, LoraLinear) else linear
