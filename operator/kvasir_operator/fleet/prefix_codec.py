"""Prefixes as they lie in a Secret: compressed JSON of bounded size. What somebody edited by hand is not believed."""

import zlib
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from kvasir_operator.fleet.prefixes import KeptPrefix, KeptPrefixes

LIMIT_BYTES: Final = 192 * 1024
"""Of one revision, compressed: four of them stay below the 1 MiB that a Secret may hold."""
INFLATED_LIMIT_BYTES: Final = 16 * 1024 * 1024
"""What is larger when it is unpacked was not written by us."""
MAX_PREFIXES: Final = 4096

TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class _Prefix(BaseModel):
    model_config = ConfigDict(extra="ignore")

    ids: list[TokenId] = Field(min_length=1, max_length=1_048_576)
    hits: float = Field(ge=0, lt=1e12)
    tokenizer: str = Field(min_length=1, max_length=128)
    adapter: str = Field(default="", max_length=253)
    salt: str = Field(default="", max_length=256)


class _Document(BaseModel):
    model_config = ConfigDict(extra="ignore")

    at: AwareDatetime
    prefixes: list[_Prefix] = Field(max_length=MAX_PREFIXES)


def encode(kept: KeptPrefixes, limit: int = LIMIT_BYTES) -> bytes:
    """At most `limit` bytes; the coldest are left out where all of them take more."""
    count = min(len(kept.prefixes), MAX_PREFIXES)
    while True:
        data = zlib.compress(_document(replace(kept, prefixes=kept.prefixes[:count])))
        if len(data) <= limit or count == 0:
            return data
        count = min(count - 1, count * limit // len(data))


def decode(data: bytes, now: datetime) -> KeptPrefixes | None:
    """What was kept; None for anything that we did not write. Times to come count as now."""
    try:
        inflater = zlib.decompressobj()
        content = inflater.decompress(data, INFLATED_LIMIT_BYTES)
        document = _Document.model_validate_json(content) if inflater.eof else None
    except (zlib.error, ValidationError):
        return None
    if document is None:
        return None
    prefixes = (
        KeptPrefix(tuple(each.ids), each.hits, each.tokenizer, each.adapter, each.salt) for each in document.prefixes
    )
    return KeptPrefixes(min(document.at, now), tuple(prefixes))


def _document(kept: KeptPrefixes) -> bytes:
    prefixes = [
        _Prefix(
            ids=list(each.token_ids),
            hits=round(each.hits, 3),
            tokenizer=each.tokenizer,
            adapter=each.adapter,
            salt=each.cache_salt,
        )
        for each in kept.prefixes
    ]
    return _Document(at=kept.at, prefixes=prefixes).model_dump_json(exclude_defaults=True).encode()
