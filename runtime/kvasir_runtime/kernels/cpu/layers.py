"""All layers of a model in one call of the C++ kernels, where each layer is of the plain kind that `layers.cpp` knows.

A layer is ten calls from Python otherwise, about 5 microseconds each in which the other threads wait and, when it takes
longer, go to sleep.
"""

import ctypes
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from kvasir_runtime.attention.cpu_backend import CpuBackend
from kvasir_runtime.attention.metadata import AttentionMetadata, Sequences
from kvasir_runtime.kernels.cpu.library import LayersShape, Library
from kvasir_runtime.kernels.cpu.ops import CpuOps
from kvasir_runtime.layers.mlp import GatedMLP
from kvasir_runtime.lora.kernels import CpuLora
from kvasir_runtime.lora.runtime import LoraLinear, LoraRuntime, base_of
from kvasir_runtime.models.decoder import DecoderLayer, DecoderModel
from kvasir_runtime.quantization.base import PackedLinear
from kvasir_runtime.quantization.bf16 import Bf16Linear, SiluGatedBf16Linear
from kvasir_runtime.quantization.int8 import Int8Linear

_WEIGHT_FIELDS: Final = 9
_LAYER_FIELDS: Final = 4 * _WEIGHT_FIELDS + 5
_KV_FIELD: Final = _LAYER_FIELDS - 1


class FusedLayers:
    """Takes what `DecoderModel` gives its layers and returns what they would, bit for bit."""

    def __init__(self, model: DecoderModel, library: Library, lora: LoraRuntime | None) -> None:
        """For models that `of` takes."""
        config, spec = model.config, model.layers[0].attention.spec
        self._library = library
        self._lora = lora
        self._middle = torch.empty(0, dtype=torch.float32)
        self._kept = model.layers  # their memory is what the pointers point to
        flat = [value for layer in model.layers for value in _layer_fields(layer)]
        self._layers = (ctypes.c_int64 * len(flat))(*flat)
        self._shape = LayersShape(
            config.hidden_size, config.intermediate_size, spec.num_heads, spec.num_kv_heads, spec.head_dim, 0,
            _gates(model.layers[0]), config.norm_eps, spec.scale, spec.softcap or 0.0,
        )  # fmt: skip
        self._scratch_each = library.layers_scratch(self._shape)

    def __call__(self, x_TD: Tensor, kv_cache: Sequence[Tensor], step: AttentionMetadata) -> tuple[Tensor, Tensor]:
        for layer, kv_2BKSC in enumerate(kv_cache):
            self._layers[layer * _LAYER_FIELDS + _KV_FIELD] = kv_2BKSC.data_ptr()
        x_TD = x_TD.contiguous()
        residual_TD = torch.empty_like(x_TD)
        scratch = x_TD.new_empty(len(x_TD) * self._scratch_each)
        _, blocks, _, self._shape.block_size, _ = kv_cache[0].shape
        rows = (len(x_TD), blocks, step.positions_T.data_ptr(), step.slots_T.data_ptr())
        both = (*_sequences(step.decodes, 0), *_sequences(step.prefills, step.starts_P.data_ptr()))
        self._library.layers(
            self._layers,
            len(kv_cache),
            ctypes.byref(self._shape),
            (ctypes.c_int64 * 19)(*rows, *both, *self._adapters()),
            x_TD.data_ptr(),
            residual_TD.data_ptr(),
            scratch.data_ptr(),
            torch.get_num_threads(),
        )
        return x_TD, residual_TD

    def _adapters(self) -> tuple[int, ...]:
        """The step's rows with adapters; none where there are none."""
        if self._lora is None or self._lora.batch is None:
            return 0, 0, 0, 0, 0
        batch = self._lora.batch
        needed = len(batch.rows_N) * self._lora.width
        if self._middle.numel() < needed:
            self._middle = torch.empty(needed, dtype=torch.float32)
        return *batch.addresses, len(batch.slots_G), self._middle.data_ptr()

    @classmethod
    def of(cls, model: DecoderModel, lora: LoraRuntime | None) -> "FusedLayers | None":
        """For a model that can be computed so, else None."""
        if lora is not None and not isinstance(lora.kernel, CpuLora):
            return None
        plain = model.embedding_VD.dtype is torch.bfloat16 and all(_is_plain(layer) for layer in model.layers)
        if not plain or len(set(map(_gates, model.layers))) != 1:
            return None
        backend = model.layers[0].attention.backend
        assert isinstance(backend, CpuBackend)
        return cls(model, backend.library, lora)


def _is_plain(layer: DecoderLayer) -> bool:
    attention, mlp = layer.attention, layer.mlp
    return (
        type(layer) is DecoderLayer
        and isinstance(attention.backend, CpuBackend)
        and attention.q_norm is None
        and type(mlp) is GatedMLP
        and all(
            isinstance(base_of(each), (Bf16Linear, Int8Linear)) for each in (attention.qkv, attention.out, mlp.down)
        )
        and (_gates(layer) or _activates_after(mlp))
    )


def _gates(layer: DecoderLayer) -> bool:
    return isinstance(layer.mlp, GatedMLP) and isinstance(layer.mlp.gate_up, SiluGatedBf16Linear)


def _activates_after(mlp: GatedMLP) -> bool:
    owner, function = getattr(mlp.activate, "__self__", None), getattr(mlp.activate, "__func__", None)
    known = isinstance(owner, CpuOps) and function is CpuOps.silu_and_mul
    return known and isinstance(base_of(mlp.gate_up), (Bf16Linear, Int8Linear))


def _layer_fields(layer: DecoderLayer) -> list[int]:
    attention, mlp = layer.attention, layer.mlp
    assert isinstance(mlp, GatedMLP)
    weights = (attention.qkv, attention.out, mlp.gate_up, mlp.down)
    return [
        *(value for weight in weights for value in _weight_fields(weight)),
        layer.attention_norm.weight_D.data_ptr(),
        layer.mlp_norm.weight_D.data_ptr(),
        attention.cos_sin_LC.data_ptr(),
        attention.spec.window or 0,
        0,
    ]


def _weight_fields(weight: PackedLinear) -> tuple[int, ...]:
    base = base_of(weight)
    assert isinstance(base, (Bf16Linear, SiluGatedBf16Linear, Int8Linear))
    if not isinstance(weight, LoraLinear):
        return *base.fields(), 0, 0, 0
    return *base.fields(), *weight.slots.addresses, len(weight.slots.offsets) - 1


def _sequences(part: Sequences, starts: int) -> tuple[int, ...]:
    return part.tables_NM.data_ptr(), part.lengths_N.data_ptr(), starts, len(part), part.tables_NM.shape[1]
