"""An adapter in the form that is computed with: one block of memory, read once, freed as a whole.

Letters: I inputs, O outputs, R the rank padded to a multiple of 16. A lies as panels `[R / 16, I, 16]`, B, with the
scale in it, as `[ceil(O / 16), R, 16]`: a vector holds sixteen ranks, or sixteen outputs, and is read in order.

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
        return int(self.b.shape[1])


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
        name: ((rank // LANES, a.shape[1], LANES), (_panels(b.shape[0]), rank, LANES)) for name, (a, b) in pairs.items()
    }
    total = sum(int(np.prod(shape)) for both in shapes.values() for shape in both) * stored.itemsize
    memory = np.frombuffer(mmap.mmap(-1, total), dtype=stored)  # zeros; its own mapping, so that freeing it is real
    modules, at = {}, 0
    for name, (a_entry, b_entry) in pairs.items():
        views = []
        for shape in shapes[name]:
            size = int(np.prod(shape))
            views.append(memory[at : at + size].reshape(shape))
            at += size
        _fill(views[0], _read(name, a_entry, data).T, dtype)
        _fill_outputs(views[1], _read(name, b_entry, data, config.scale), dtype)
        modules[name] = Matrices(views[0], views[1])
    return AdapterImage(digest, total, modules)


def _read_file(path: Path) -> mmap.mmap:
    """A file in a mapping of its own: what the heap takes for it would not go back to the system."""
    with path.open("rb") as file:
        data = mmap.mmap(-1, max(1, os.fstat(file.fileno()).st_size))
        file.readinto(data)
    return data


def _panels(count: int) -> int:
    return -(-count // LANES)


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


def _fill(panels: Array, values_IR: Array, dtype: str) -> None:
    """`[I, r]` into `[R / 16, I, 16]`; what lies beyond r stays zero."""
    for number, panel in enumerate(panels):
        columns = values_IR[:, number * LANES : (number + 1) * LANES]
        panel[:, : columns.shape[1]] = _narrow(columns, dtype)


def _fill_outputs(panels: Array, values_Or: Array, dtype: str) -> None:
    """`[O, r]` into `[ceil(O / 16), R, 16]`."""
    outputs, rank = values_Or.shape
    whole = outputs // LANES
    narrow = _narrow(values_Or, dtype)
    panels[:whole, :rank] = narrow[: whole * LANES].reshape(whole, LANES, rank).transpose(0, 2, 1)
    if outputs % LANES:
        panels[whole, :rank, : outputs % LANES] = narrow[whole * LANES :].T


def _narrow(values: Array, dtype: str) -> Array:
    return narrow_to_bfloat16(values) if dtype == "bfloat16" else values


def widen(bits: Array) -> Array:
    """bfloat16 bits to float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow_to_bfloat16(values: Array) -> Array:
    """float32 to bfloat16 bits, to nearest, ties to even; finite numbers only."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
