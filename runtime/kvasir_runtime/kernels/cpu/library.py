"""Finds, or compiles, the kernels for this CPU and loads them."""

import ctypes
import functools
import logging
import platform
import subprocess
from collections.abc import Callable
from ctypes import CDLL, Structure, byref, c_double, c_float, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any, ClassVar, Final

import torch

from kvasir_runtime.kernels.cpu import build

log = logging.getLogger(__name__)

_POINTER, _SIZE = c_void_p, c_int64
_SIGNATURES: Final[dict[str, list[Any]]] = {
    "kvasir_attention": [c_int, *[_POINTER] * 6, *[_SIZE] * 7, c_float, c_float, _SIZE, c_int],
    "kvasir_write_kv": [c_int, *[_POINTER] * 8, *[_SIZE] * 9, c_int],
    "kvasir_rms_norm": [c_int, *[_POINTER] * 4, _SIZE, _SIZE, c_float, c_int],
    "kvasir_silu_and_mul": [c_int, *[_POINTER] * 2, _SIZE, _SIZE, c_int],
    "kvasir_pack_int8": [c_int, *[_POINTER] * 4, _SIZE, _SIZE, c_int],
    "kvasir_linear_int8": [c_int, *[_POINTER] * 6, *[_SIZE] * 3, c_int],
    "kvasir_pack_bf16": [*[_POINTER] * 2, *[_SIZE] * 2, c_int],
    "kvasir_linear_bf16": [*[_POINTER] * 4, *[_SIZE] * 3, c_int],
    "kvasir_silu_gated_bf16": [*[_POINTER] * 3, *[_SIZE] * 3, c_int],
    "kvasir_layers": [_POINTER, _SIZE, *[_POINTER] * 5, c_int],
}

Kernel = Callable[..., None]


class LayersShape(Structure):
    """What all layers of a model have in common; see `cpp/layers.cpp`."""

    _fields_: ClassVar = [
        *((name, c_int64) for name in ("hidden", "inner", "heads", "kv_heads", "head_dim", "block_size", "gated")),
        *((name, c_double) for name in ("eps", "scale", "softcap")),
    ]


class Library:
    """The kernels as Python callables; tensors are passed by `data_ptr()`. See `cpp` for the arguments."""

    def __init__(self, path: Path) -> None:
        self.path = path
        library = CDLL(str(path))
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, None
        self.attention: Kernel = library.kvasir_attention
        self.write_kv: Kernel = library.kvasir_write_kv
        self.rms_norm: Kernel = library.kvasir_rms_norm
        self.silu_and_mul: Kernel = library.kvasir_silu_and_mul
        self.pack_int8: Kernel = library.kvasir_pack_int8
        self.linear_int8: Kernel = library.kvasir_linear_int8
        self.pack_bf16: Kernel = library.kvasir_pack_bf16
        self.linear_bf16: Kernel = library.kvasir_linear_bf16
        self.silu_gated_bf16: Kernel = library.kvasir_silu_gated_bf16
        for function in (library.kvasir_int8_bytes, library.kvasir_bf16_bytes):
            function.argtypes, function.restype = [_SIZE, _SIZE], _SIZE
        self.int8_bytes: Callable[[int, int], int] = library.kvasir_int8_bytes
        self.bf16_bytes: Callable[[int, int], int] = library.kvasir_bf16_bytes
        self.layers: Kernel = library.kvasir_layers
        library.kvasir_layers_scratch.argtypes = [_POINTER]
        library.kvasir_layers_scratch.restype = _SIZE
        self._layers_scratch = library.kvasir_layers_scratch
        self.max_group: int = library.kvasir_max_group()
        library.kvasir_kv_paired.argtypes = [c_int, _SIZE]
        self._kv_paired = library.kvasir_kv_paired

    def layers_scratch(self, shape: LayersShape) -> int:
        """Numbers of scratch memory for each row of `layers`."""
        return int(self._layers_scratch(byref(shape)))

    def kv_paired(self, dtype: torch.dtype, block_size: int) -> bool:
        """Whether blocks hold tiles of pairs, an arrangement of attention.cpp's own, and not rows."""
        return bool(self._kv_paired(dtype is torch.bfloat16, block_size))


@functools.cache
def load_library() -> Library | None:
    """The kernels for this CPU; None, with the reason logged once, when there are none and none can be made."""
    variant = next(iter(usable_variants()), None)
    if variant is None:
        log.warning("no CPU kernels for %s: attention runs in plain torch", platform.machine())
        return None
    name = build.library_name(variant, build.VARIANTS[platform.machine()][variant])
    for folder in (build.INSTALL_FOLDER, build.cache_folder()):
        if (folder / name).is_file():
            return _open(folder / name)
    try:
        return _open(build.build(variant, build.cache_folder()))
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        log.warning("CPU kernels cannot be compiled, attention runs in plain torch: %s", reason)
        return None


def _open(path: Path) -> Library | None:
    # torch's OpenMP runtime must be in the global namespace: the kernels have none of their own.
    if not hasattr(ctypes.CDLL(None), "GOMP_parallel"):
        log.warning("torch brings no GNU OpenMP here: attention runs in plain torch")
        return None
    return Library(path)


def usable_variants() -> list[str]:
    """Those that this CPU can run, best first."""
    capability = torch.backends.cpu.get_cpu_capability()
    wide = capability.startswith("AVX512")
    usable = {
        "avx512bf16": wide and torch.cpu._is_avx512_bf16_supported() and torch.cpu._is_vnni_supported(),  # noqa: SLF001
        "avx512": wide,
        "avx2": capability != "DEFAULT",
    }
    return [name for name in build.VARIANTS.get(platform.machine(), {}) if usable.get(name, True)]
