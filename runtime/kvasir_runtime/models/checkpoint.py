"""Weights of a model folder: memory-mapped safetensors files, read tensor by tensor as modules ask for them."""

import hashlib
import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kvasir_runtime.contract.failures import Cause, KvasirError

_INDEX: Final = "model.safetensors.index.json"
_SAMPLE_BYTES: Final = 4096
_DERIVED: Final = ("rotary_emb.inv_freq", "masked_bias")
"""Ends of names of buffers that old checkpoints hold and that follow from the config."""


class Checkpoint:
    """Opened files of one folder. Tensors are views of the files; no code and no pickle is ever read.

    `on_progress` is told the share of the checkpoint's bytes that was handed out.
    """

    def __init__(self, folder: Path, on_progress: Callable[[float], None] = lambda _: None) -> None:
        self.folder = folder
        self._on_progress = on_progress
        self._stack = ExitStack()
        self._paths = _weight_files(folder)
        self._file_of: dict[str, Any] = {}
        for path in self._paths:
            handle = self._open(path)
            self._file_of.update(dict.fromkeys(handle.keys(), handle))
        self._check_index()
        self._unread = {name for name in self._file_of if not name.endswith(_DERIVED)}
        self._total = sum(path.stat().st_size for path in self._paths)
        self._read = 0

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor of that name, a read-only view of the file. A missing one or another shape is an error."""
        if name not in self._file_of:
            raise KvasirError(
                Cause.WEIGHTS_CORRUPT,
                f"{self.folder}: tensor {name} of shape {list(shape)} is missing",
                "check that all files of the model were downloaded and belong to its config.json",
            )
        tensor = self._get(name)
        if tuple(tensor.shape) != shape:
            raise KvasirError(
                Cause.WEIGHTS_CORRUPT,
                f"{self.folder}: tensor {name} must have shape {list(shape)} by config.json, got {list(tensor.shape)}",
                "check that weights and config.json belong together",
            )
        if not tensor.is_floating_point():
            raise KvasirError(
                Cause.MODEL_UNSUPPORTED,
                f"{self.folder}: tensor {name} has type {tensor.dtype}",
                "supported: checkpoints in float32, bfloat16 or float16",
            )
        self._unread.discard(name)
        self._read += tensor.nbytes
        self._on_progress(min(1.0, self._read / self._total))
        return tensor

    def ignore(self, name: str) -> None:
        """Say that a tensor, if it is there, is not needed."""
        self._unread.discard(name)

    def close(self) -> None:
        """Unmap the files. Raises when tensors are left that no module asked for: the model would not be the same."""
        self._stack.close()
        if self._unread:
            names = sorted(self._unread)
            raise KvasirError(
                Cause.MODEL_UNSUPPORTED,
                f"{self.folder}: {len(names)} tensors have no place in this architecture: {', '.join(names[:3])} …",
                "the checkpoint has parts that config.json does not announce",
                tensors=names[:50],
            )

    def digest(self) -> str:
        """Identity of the weights: hashes names, types, shapes and the first bytes of every tensor, not all bytes."""
        whole = hashlib.blake2b(digest_size=16)
        whole.update((self.folder / "config.json").read_bytes())
        for path in self._paths:
            _hash_file(whole, path)
        return whole.hexdigest()

    def _open(self, path: Path) -> Any:
        try:
            return self._stack.enter_context(safe_open(path, framework="pt", device="cpu"))
        except (SafetensorError, OSError) as error:
            raise KvasirError(
                Cause.WEIGHTS_CORRUPT, f"{path} cannot be read: {error}", "download the model again", path=str(path)
            ) from error

    def _get(self, name: str) -> Tensor:
        try:
            tensor = self._file_of[name].get_tensor(name)
        except SafetensorError as error:
            raise KvasirError(Cause.WEIGHTS_CORRUPT, f"{self.folder}: tensor {name} cannot be read: {error}") from error
        assert isinstance(tensor, torch.Tensor)
        return tensor

    def _check_index(self) -> None:
        index = self.folder / _INDEX
        if not index.is_file():
            return
        missing = sorted(set(_read_index(index)) - set(self._file_of))
        if missing:
            raise KvasirError(
                Cause.WEIGHTS_CORRUPT,
                f"{index} lists {len(missing)} tensors that the files do not hold, such as {missing[0]}",
                "download the model again",
            )


def _weight_files(folder: Path) -> list[Path]:
    index, single = folder / _INDEX, folder / "model.safetensors"
    if index.is_file():
        paths = [folder / name for name in sorted(set(_read_index(index).values()))]
        outside = [path for path in paths if path.parent != folder]
        if outside:
            raise KvasirError(Cause.MODEL_INVALID, f"{index} names a file outside its folder: {outside[0]}")
    else:
        paths = [single]
    for path in paths:
        if not path.is_file():
            raise KvasirError(
                Cause.MODEL_NOT_FOUND if path == single else Cause.WEIGHTS_CORRUPT,
                f"{folder} holds no {path.name}",
                "weights must be in safetensors format; pickled weights (.bin, .pt) are not loaded",
            )
    return paths


def _read_index(path: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise KvasirError(
            Cause.WEIGHTS_CORRUPT, f"{path} cannot be read: {error!r}", "download the model again"
        ) from error


def _hash_file(whole: hashlib.blake2b, path: Path) -> None:
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        header = file.read(header_size)
        whole.update(header)
        tensors = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        for entry in tensors.values():
            start, end = entry["data_offsets"]
            file.seek(8 + header_size + start)
            whole.update(file.read(min(_SAMPLE_BYTES, end - start)))
