"""A PEFT checkpoint on disk: who it is, and whether it fits the model. Torch-free; no tensor's bytes are used here.

An adapter's identity is the digest of its two files. Whoever has them can compute it:

    sha256sum adapter_config.json adapter_model.safetensors | sha256sum
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.contract.memory import ModelShape
from kvasir_runtime.fetch.verify import verify_safetensors
from kvasir_runtime.lora.config import LoraConfig, invalid, parse_config
from kvasir_runtime.lora.targets import Projection, projections
from kvasir_runtime.validation import shorten

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
DTYPE_SIZES: Final = {"F32": 4, "BF16": 2, "F16": 2}
"""Bytes of a number, by the names that safetensors uses."""

_LARGEST_CONFIG: Final = 1 << 20
_NAME: Final = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


@dataclass(frozen=True)
class AdapterLimits:
    """What an adapter must fit: the largest rank, the model's projections by name, its class and its names."""

    max_rank: int
    projections: Mapping[str, Projection]
    architecture: str = ""
    model_names: frozenset[str] = frozenset()


def adapter_limits(config: Mapping[str, Any], max_rank: int, names: Iterable[str]) -> AdapterLimits:
    """The limits for a model with this config.json that is served under `names`; raises KvasirError(ModelInvalid)."""
    try:
        shape = ModelShape.from_hf_config(config)
    except ValueError as error:
        raise KvasirError(Cause.MODEL_INVALID, str(error), "download the model again") from None
    classes = config.get("architectures")
    architecture = str(classes[0]) if isinstance(classes, list) and classes else ""
    origin = str(config.get("_name_or_path") or "").rstrip("/").rpartition("/")[2]
    known = {name.rpartition("/")[2] for name in (*names, origin) if name}
    return AdapterLimits(max_rank, projections(shape), architecture, frozenset(known))


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor's bytes lie in the weights file, header included."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class AdapterFiles:
    """A checked adapter. `pairs` has A (`[rank, inputs]`) and B (`[outputs, rank]`) of each module it changes."""

    folder: Path
    digest: str
    config: LoraConfig
    pairs: Mapping[str, tuple[TensorEntry, TensorEntry]] = field(repr=False)
    note: str = ""
    """What is worth telling although it is no error."""


def check_adapter(folder: Path, limits: AdapterLimits) -> AdapterFiles:
    """Check a folder; raises KvasirError: AdapterInvalid, or WeightsCorrupt for a file that is not whole."""
    config_bytes = _read_config(folder)
    config = parse_config(config_bytes, limits.max_rank)
    weights = folder / WEIGHTS
    verify_safetensors(weights)
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        pairs = match_tensors(parse_header(file.read(length)), config, limits)
        file.seek(0)
        weights_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    digest = adapter_digest(hashlib.sha256(config_bytes).hexdigest(), weights_sha256)
    return AdapterFiles(folder, digest, config, pairs, check_base_model(config, limits))


def adapter_digest(config_sha256: str, weights_sha256: str) -> str:
    """The digest of both files, from their own (hexadecimal SHA-256)."""
    listing = f"{config_sha256}  {CONFIG}\n{weights_sha256}  {WEIGHTS}\n"
    return hashlib.sha256(listing.encode()).hexdigest()


def parse_header(header: bytes) -> dict[str, TensorEntry]:
    """The tensors that a safetensors header announces, by name; their offsets are counted from the file's begin.

    Format: https://huggingface.co/docs/safetensors#format
    """
    start = 8 + len(header)
    entries = json.loads(header)
    entries.pop("__metadata__", None)
    return {name: _entry(name, values, start) for name, values in entries.items()}


def match_tensors(
    entries: Mapping[str, TensorEntry], config: LoraConfig, limits: AdapterLimits
) -> dict[str, tuple[TensorEntry, TensorEntry]]:
    """A and B by module; raises KvasirError(AdapterInvalid) for a tensor without a place or a partner."""
    sides: dict[str, dict[str, TensorEntry]] = {}
    for name, entry in entries.items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise invalid(
                f"tensor {shorten(name)} is no lora_A or lora_B of a linear layer", "only those are supported"
            )
        module, side = match["module"], match["side"]
        _check_shape(name, entry, side, config.rank, _projection(module, limits))
        sides.setdefault(module, {})[side] = entry
    if not sides:
        raise invalid(f"{WEIGHTS} holds no tensor")
    for module, found in sides.items():
        if len(found) != 2:
            raise invalid(f"{module} has lora_{next(iter(found))} but not the other of lora_A and lora_B")
    return {module: (found["A"], found["B"]) for module, found in sides.items()}


def check_base_model(config: LoraConfig, limits: AdapterLimits) -> str:
    """A note when the adapter names another model: names differ legitimately. Another class is refused."""
    if config.base_class and limits.architecture and config.base_class != limits.architecture:
        raise invalid(
            f"auto_mapping.base_model_class must be {limits.architecture}, got {shorten(config.base_class)}",
            "load an adapter that was trained for this model",
        )
    name = config.base_model.rstrip("/").rpartition("/")[2]
    if name and limits.model_names and name.lower() not in {known.lower() for known in limits.model_names}:
        return f"trained for {shorten(config.base_model)}, which is none of this model's names; all sizes fit"
    return ""


def _read_config(folder: Path) -> bytes:
    if not folder.is_dir():
        raise invalid(f"{folder} is no folder", "give the folder of a PEFT checkpoint")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise _missing(folder, name)
    if (size := (folder / CONFIG).stat().st_size) > _LARGEST_CONFIG:
        raise invalid(f"{CONFIG} must have at most {_LARGEST_CONFIG} bytes, has {size}")
    try:
        return (folder / CONFIG).read_bytes()
    except OSError as error:
        raise KvasirError(Cause.SOURCE_FORBIDDEN, f"cannot read {folder / CONFIG}: {error.strerror}") from None


def _missing(folder: Path, name: str) -> KvasirError:
    pickled = sorted(path.name for ending in ("*.bin", "*.pt", "*.pth") for path in folder.glob(ending))
    found = f"; {pickled[0]} is a pickle, which is never loaded" if pickled and name == WEIGHTS else ""
    return invalid(f"{folder} holds no {name}{found}", "save the adapter with PEFT's save_pretrained, as safetensors")


def _entry(name: str, values: Any, start: int) -> TensorEntry:
    try:
        begin, end = values["data_offsets"]
        shape = tuple(int(size) for size in values["shape"])
        dtype = str(values["dtype"])
    except (TypeError, KeyError, ValueError):
        raise invalid(f"the header's entry of tensor {shorten(name)} cannot be read") from None
    if dtype not in DTYPE_SIZES:
        raise invalid(f"tensor {shorten(name)} must be of type {', '.join(DTYPE_SIZES)}, got {shorten(dtype)}")
    if min(shape, default=1) < 1 or math.prod(shape) * DTYPE_SIZES[dtype] != end - begin:
        raise invalid(f"tensor {shorten(name)} has {end - begin} bytes, its shape {list(shape)} tells otherwise")
    return TensorEntry(dtype, shape, start + begin, start + end)


def _projection(module: str, limits: AdapterLimits) -> Projection:
    projection = limits.projections.get(module)
    if projection is None:
        kinds = sorted({name.rpartition(".")[2] for name in limits.projections})
        raise invalid(
            f"the model has no layer {shorten(module)} that an adapter may change", f"supported: {', '.join(kinds)}"
        )
    return projection


def _check_shape(name: str, entry: TensorEntry, side: str, rank: int, projection: Projection) -> None:
    expected = (rank, projection.inputs) if side == "A" else (projection.outputs, rank)
    if entry.shape != expected:
        raise invalid(
            f"tensor {name} must have shape {list(expected)} for this model, got {list(entry.shape)}",
            "load an adapter that was trained for this model",
        )
