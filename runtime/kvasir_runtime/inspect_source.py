"""A model looked at where it is stored: its config.json and the size of its weights, without fetching the weights."""

import json
from collections.abc import Mapping
from contextlib import closing
from typing import Any, Final

from kvasir_runtime.contract.failures import Cause, KvasirError
from kvasir_runtime.contract.memory import ModelShape
from kvasir_runtime.contract.model_report import ModelReport, architecture_of
from kvasir_runtime.fetch import names
from kvasir_runtime.fetch.fetcher import open_source
from kvasir_runtime.fetch.retry import RetryPolicy
from kvasir_runtime.fetch.source import Access, RemoteFile, Source
from kvasir_runtime.fetch.uri import HttpAddress, parse_uri, without_credentials

LARGEST_CONFIG: Final = 1 << 20
"""Bytes of a config.json; those of the largest models have some thousand."""
LARGEST_INDEX: Final = 64 << 20
"""Bytes of an index; one of a hundred thousand tensors has ten million."""
CONFIG: Final = "config.json"


def inspect_source(uri: str, access: Access, retry: RetryPolicy) -> ModelReport:
    """Read what memory depends on; raises KvasirError for a source that is away, or holds no model.

    Two small files are read. Of an archive nothing can be said before it is fetched: that is refused.
    """
    where = without_credentials(uri)
    address = parse_uri(uri)
    if isinstance(address, HttpAddress) and address.is_archive:
        raise KvasirError(
            Cause.INVALID_ARGUMENTS, f"{where} is an archive, whose files can only be read whole", "name a folder"
        )
    with closing(open_source(address, access)) as source:
        files = {file.name: file for file in retry.call(source.list_files, where)}
        if CONFIG not in files:
            raise KvasirError(
                Cause.MODEL_NOT_FOUND, f"{where} holds no {CONFIG}", "the URI must name the folder that holds it"
            )
        config = retry.call(lambda: _read_json(source, files[CONFIG], LARGEST_CONFIG), f"{where}/{CONFIG}")
        index = files.get(names.INDEX)
        stored = retry.call(lambda: _total_size(source, index), where) if index is not None else None
    return report_of(config, stored if stored is not None else _sizes(files), where)


def report_of(config: Mapping[str, Any], stored_bytes: int | None, where: str) -> ModelReport:
    """Put together what was read; raises KvasirError (ModelInvalid) that names the key of config.json."""
    try:
        return ModelReport(ModelShape.from_hf_config(config), architecture_of(config), stored_bytes)
    except ValueError as error:
        raise KvasirError(Cause.MODEL_INVALID, f"{where}: {error}", "export the model again") from None


def _total_size(source: Source, index: RemoteFile) -> int | None:
    """`metadata.total_size` of the index; None where it does not say."""
    metadata = _read_json(source, index, LARGEST_INDEX).get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return int(total) if isinstance(total, int | float) and total > 0 else None


def _sizes(files: Mapping[str, RemoteFile]) -> int | None:
    """Bytes of all weight files; their headers are too small to matter."""
    sizes = [file.size for name, file in files.items() if name.endswith(".safetensors")]
    known = [size for size in sizes if size is not None]
    return sum(known) if known and len(known) == len(sizes) else None


def _read_json(source: Source, file: RemoteFile, longest: int) -> dict[str, Any]:
    """A small file, from its beginning; raises KvasirError (ModelInvalid) for one that is none."""
    stream = source.open(file, 0)
    content = bytearray()
    with closing(stream.chunks):
        for chunk in stream.chunks:
            content += chunk
            if len(content) > longest:
                raise _invalid(file, f"has more than {longest} bytes")
    try:
        data = json.loads(content)
    except ValueError as error:
        raise _invalid(file, f"is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise _invalid(file, f"must hold a JSON object, holds {type(data).__name__}")
    return data


def _invalid(file: RemoteFile, problem: str) -> KvasirError:
    return KvasirError(Cause.MODEL_INVALID, f"{file.name} {problem}", "check that the source holds the right file")
