"""What a request's body says of where it should go. Pure.

The router has no tokenizer. It hashes the bytes of the prompt from the front, at boundaries that are the same for all
prompts: 64, 128, 192, … bytes, from 512 on each about a quarter further than the one before. Two prompts with a common
beginning share the hashes up to the last boundary within it, so that at least four fifths of it are seen, with 49
hashes for 4 MiB. A hash covers all bytes before its boundary (it is chained), the model's name and the cache salt.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

import msgspec

BYTES_PER_TOKEN: Final = 4
"""Of English text; a rough measure is enough to compare loads."""

OUTPUT_TOKENS: Final = 256
"""What an answer is counted as: how long it will be is not known."""

MAX_HASHED_BYTES: Final = 4 * 1024 * 1024

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder().decode


def _boundaries() -> Iterator[int]:
    """Where prompts are hashed, in bytes; multiples of 64, which a short prompt's few tokens are worth."""
    boundary = 64
    while boundary <= MAX_HASHED_BYTES:
        yield boundary
        boundary += max(64, boundary // 4 // 64 * 64)


BOUNDARIES: Final = tuple(_boundaries())


@dataclass(frozen=True, slots=True)
class Ask:
    """What of a request decides where it goes.

    `blocks` are chained hashes of its prompt, the shortest prefix first; those of a session begin with the session's.
    `cost` is its estimated size in tokens.
    """

    model: str = ""
    blocks: tuple[int, ...] = ()
    session: bool = False
    cost: int = OUTPUT_TOKENS


def read_ask(body: bytes, session: str | None = None) -> Ask:
    """What a body says; whatever cannot be read is left to the replica, which refuses it with the reason."""
    cost = len(body) // BYTES_PER_TOKEN + OUTPUT_TOKENS
    try:
        fields = _decode(body) if body else {}
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        fields = {}
    if not isinstance(fields, dict):
        fields = {}
    model = fields.get("model")
    model = model if isinstance(model, str) else ""
    session = session or _session(fields)
    seed = _digest(b"", f"{model}\0{fields.get('cache_salt') or ''}\0{session or ''}".encode(errors="replace"))
    blocks = _hashes(seed, _prompt_bytes(fields))
    if session:
        blocks = (_number(seed), *blocks)
    return Ask(model, blocks, bool(session), cost)


def _session(fields: dict[str, Any]) -> str | None:
    """Whoever names a session wants it to stay where it is: OpenAI's `prompt_cache_key`, else `user`."""
    for name in ("prompt_cache_key", "user"):
        value = fields.get(name)
        if isinstance(value, str) and value:
            return f"{name}={value}"
    return None


def _prompt_bytes(fields: dict[str, Any]) -> bytes:
    """The prompt so that a longer one of the same conversation begins with the same bytes."""
    messages = fields.get("messages")
    if isinstance(messages, list):
        tools = fields.get("tools")
        return b"".join((_encode(tools) if tools else b"", *_message_bytes(messages)))
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        prompt = prompt[0]  # the first of several decides for all
    if isinstance(prompt, str):
        return prompt[:MAX_HASHED_BYTES].encode(errors="replace")
    return _encode(prompt[:MAX_HASHED_BYTES]) if isinstance(prompt, list) else b""


def _message_bytes(messages: list[Any]) -> Iterator[bytes]:
    size = 0
    for message in messages:
        if size > MAX_HASHED_BYTES:
            return
        encoded = _encode(message)
        size += len(encoded)
        yield encoded


def _hashes(seed: bytes, prompt: bytes) -> tuple[int, ...]:
    hashes: list[int] = []
    begin, digest = 0, seed
    for boundary in BOUNDARIES:
        if boundary > len(prompt):
            break
        digest = _digest(digest, prompt[begin:boundary])
        hashes.append(_number(digest))
        begin = boundary
    return tuple(hashes)


def _digest(parent: bytes, data: bytes) -> bytes:
    return blake2b(data, digest_size=8, key=parent).digest()


def _number(digest: bytes) -> int:
    return int.from_bytes(digest, "little")
