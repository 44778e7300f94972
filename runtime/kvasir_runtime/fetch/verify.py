"""What can be known about a fetched file without torch: JSON that parses, safetensors whose header fits the file."""

import json
from pathlib import Path
from typing import Any

from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.fetch import names

LONGEST_HEADER = 100_000_000
"""Bytes; the bound of the safetensors format itself."""

LONGEST_JSON = 256 << 20
"""Bytes of a JSON file that is parsed here; the largest tokenizers have some 30 MB."""


def verify_folder(folder: Path, found: list[str]) -> None:
    """Check the files and that together they are a model or an adapter.

    Raises KvasirError: ModelInvalid for what is missing or unreadable, WeightsCorrupt for broken weights.
    """
    configuration = next((name for name in names.CONFIGURATIONS if name in found), None)
    if configuration is None:
        raise _invalid(f"there is neither {' nor '.join(names.CONFIGURATIONS)} among the fetched files")
    for name in found:
        if name.endswith(".safetensors"):
            verify_safetensors(folder / name)
        elif name.endswith(".json"):
            read_json(folder / name)
    verify_shards(folder, found, configuration)


def verify_shards(folder: Path, found: list[str], configuration: str) -> None:
    """Every weight file that the index names is there; without an index there is at least one."""
    if names.INDEX in found:
        index = read_json(folder / names.INDEX)
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict):
            raise _invalid(f"{names.INDEX} has no weight_map")
        missing = sorted({str(name) for name in weight_map.values()} - set(found))
        if missing:
            raise _invalid(f"{names.INDEX} names {missing[0]}, which is not there ({len(missing)} files missing)")
    elif not any(name.endswith(".safetensors") for name in found):
        raise _invalid(f"there is {configuration}, but no *.safetensors file beside it")


def verify_safetensors(path: Path) -> None:
    """The header is JSON and its offsets cover the rest of the file exactly, so no byte is missing or too many.

    Format: https://huggingface.co/docs/safetensors#format
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(LONGEST_HEADER, size - 8):
            raise _corrupt(path, f"a header of {length} bytes in a file of {size}")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            spans = sorted(entry["data_offsets"] for name, entry in header.items() if name != "__metadata__")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _corrupt(path, f"a header that cannot be read ({error!r})") from error
    end = 0
    for begin, next_end in spans:
        if begin != end or next_end < begin:
            raise _corrupt(path, f"tensors that overlap or leave a gap at byte {end}")
        end = next_end
    if 8 + length + end != size:
        raise _corrupt(path, f"{size} bytes, its header announces {8 + length + end}")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises KvasirError (ModelInvalid) when it holds no object."""
    if path.stat().st_size > LONGEST_JSON:
        raise _invalid(f"{path.name} has more than {LONGEST_JSON} bytes")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise _invalid(f"{path.name} is no JSON: {error}") from error
    return content if isinstance(content, dict) else {"": content}


def _invalid(why: str) -> KvasirError:
    return KvasirError(
        Cause.MODEL_INVALID,
        why,
        "export the model in Hugging Face layout, with safetensors weights, and upload it whole",
    )


def _corrupt(path: Path, why: str) -> KvasirError:
    return KvasirError(
        Cause.WEIGHTS_CORRUPT, f"{path.name} is no whole safetensors file: it has {why}", "upload the file again"
    )
