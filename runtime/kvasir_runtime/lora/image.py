"""An adapter in the form that is computed with: one block of memory, read once, freed as a whole.

Letters: I inputs, O outputs, R the rank padded to a multiple of 16. A lies as panels `[R / 16, I, 16]`, B, with the
scale in it, as `[ceil(O / 16), R, 16]`: a vector holds sixteen ranks, or sixteen outputs, and is read in order. In
bfloat16 two neighbours of the middle dimension stand side by side: `[R / 16, I / 2, 16, 2]`, with I rounded up to an
even number, and `[ceil(O / 16), R / 2, 16, 2]`; CPUs multiply bfloat16 in such pairs.

Everything here is numpy, so that reading an adapter beside a running engine takes none of torch's threads.
"""

import hashlib
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from kvasir_runtime import huge_pages
from kvasir_runtime.contract.memory import LORA_RANK_STEP
from kvasir_runtime.lora.checkpoint import (
    CONFIG,
    WEIGHTS,
    AdapterLimits,
    TensorEntry,
    adapter_digest,
    match_tensors,
    parse_header,
)
from kvasir_runtime.lora.config import LoraConfig, invalid, parse_config

LANES: Final = LORA_RANK_STEP

Array = npt.NDArray[Any]
_FILE_TYPES: Final[dict[str, Any]] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
STORED_TYPES: Final[dict[str, Any]] = {"float32": np.float32, "bfloat16": np.uint16}
"""numpy has no bfloat16: its bits are kept as integers."""


@dataclass(frozen=True)
class Matrices:
    """One module's A and B in panels, views of the image's memory."""

    a: Array
    b: Array

    @property
    def rank(self) -> int:
        return int(self.b[0].size) // LANES


@dataclass(frozen=True)
class AdapterImage:
    """`nbytes` is what it takes in memory, all of which goes back to the system with the last reference."""

    digest: str
    nbytes: int
    modules: Mapping[str, Matrices]


def read_image(folder: Path, digest: str, limits: AdapterLimits, dtype: str) -> AdapterImage:
    """Read an adapter whole, check it and lay it out as `dtype` (float32 or bfloat16).

    Raises KvasirError(AdapterInvalid) when it does not fit or is not the one of `digest`. What is checked is what is
    used: the files are read once.
    """
    try:
        config_bytes, data = (folder / CONFIG).read_bytes(), _read_file(folder / WEIGHTS)
    except OSError as error:
        raise invalid(f"cannot read {folder}: {error.strerror}") from None
    found = adapter_digest(hashlib.sha256(config_bytes).hexdigest(), hashlib.sha256(data).hexdigest())
    if found != digest:
        raise invalid(f"{folder} has digest {found}, expected {digest}", "the files changed; load the adapter again")
    config = parse_config(config_bytes, limits.max_rank)
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    pairs = match_tensors(parse_header(header), config, limits)
    return _lay_out(digest, config, pairs, data, dtype)


def _lay_out(
    digest: str,
    config: LoraConfig,
    pairs: Mapping[str, tuple[TensorEntry, TensorEntry]],
    data: mmap.mmap,
    dtype: str,
) -> AdapterImage:
    rank = -(-config.rank // LANES) * LANES
    stored = np.dtype(STORED_TYPES[dtype])
    shapes = {
        name: (panel_shape(rank, a.shape[1], dtype), panel_shape(b.shape[0], rank, dtype))
        for name, (a, b) in pairs.items()
    }
    total = sum(int(np.prod(shape)) for both in shapes.values() for shape in both) * stored.itemsize
    memory = huge_pages.zeroed(total).view(stored)  # a mapping of its own, so that freeing it is real
    modules, at = {}, 0
    for name, (a_entry, b_entry) in pairs.items():
        views = []
        for shape in shapes[name]:
            size = int(np.prod(shape))
            views.append(memory[at : at + size].reshape(shape))
            at += size
        fill_panels(views[0], _read(name, a_entry, data))
        fill_panels(views[1], _read(name, b_entry, data, config.scale))
        modules[name] = Matrices(views[0], views[1])
    return AdapterImage(digest, total, modules)


def _read_file(path: Path) -> mmap.mmap:
    """A file in a mapping of its own: what the heap takes for it would not go back to the system."""
    with path.open("rb") as file:
        data = mmap.mmap(-1, max(1, os.fstat(file.fileno()).st_size))
        file.readinto(data)
    return data


def panel_shape(lanes: int, middle: int, dtype: str) -> tuple[int, ...]:
    """The panels of a matrix `[lanes, middle]`."""
    panels = -(-lanes // LANES)
    return (panels, -(-middle // 2), LANES, 2) if dtype == "bfloat16" else (panels, middle, LANES)


def fill_panels(panels: Array, values_LM: Array) -> None:
    """Lay out a float32 matrix, lanes first; what lies beyond it stays zero."""
    lanes, middle = values_LM.shape
    if panels.ndim == 3:
        padded = np.zeros((len(panels) * LANES, middle), dtype=np.float32)
        padded[:lanes] = values_LM
        panels[:, :middle] = padded.reshape(len(panels), LANES, middle).transpose(0, 2, 1)
        return
    pairs = panels.shape[1]
    narrow = np.zeros((len(panels) * LANES, 2 * pairs), dtype=np.uint16)
    narrow[:lanes, :middle] = narrow_to_bfloat16(values_LM)
    panels[...] = narrow.reshape(len(panels), LANES, pairs, 2).transpose(0, 2, 1, 3)


def _read(module: str, entry: TensorEntry, data: mmap.mmap, scale: float = 1.0) -> Array:
    """A tensor in float32, times `scale`; raises KvasirError when a number of it is none."""
    count = (entry.end - entry.begin) // np.dtype(_FILE_TYPES[entry.dtype]).itemsize
    raw = np.frombuffer(data, _FILE_TYPES[entry.dtype], count, entry.begin)
    values = widen(raw) if entry.dtype == "BF16" else raw.astype(np.float32)
    with np.errstate(over="ignore"):
        values *= np.float32(scale)
    if not np.isfinite(values).all():
        raise invalid(f"the weights of {module} hold infinities or NaN", "train it again")
    return values.reshape(entry.shape)


def widen(bits: Array) -> Array:
    """bfloat16 bits to float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow_to_bfloat16(values: Array) -> Array:
    """float32 to bfloat16 bits, to nearest, ties to even; finite numbers only."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
