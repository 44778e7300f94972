"""Content hashes of KV blocks, chained: a block's hash stands for its tokens and all that came before them.

A block may be reused only where the same model, adapter and cache salt would have computed the same KV; so these
three are the first link of the chain. The hash is cryptographic (BLAKE2b, RFC 7693): one tenant cannot build a prompt
that collides with another's.
"""

import hashlib
from array import array
from typing import Final

DIGEST_SIZE: Final = 16
"""Bytes: 128 bits make an accidental collision among 2^40 blocks less likely than 2^-48."""


def hash_root(model_digest: str, adapter_digest: str = "", cache_salt: str = "") -> bytes:
    """First link of the chains of all prompts that may share KV."""
    root = hashlib.blake2b(digest_size=DIGEST_SIZE)
    for part in (model_digest, adapter_digest, cache_salt):
        data = part.encode()
        root.update(len(data).to_bytes(8, "little") + data)  # the length keeps ("ab", "c") apart from ("a", "bc")
    return root.digest()


def extend_block_hashes(hashes: list[bytes], root: bytes, token_ids: "array[int]", block_size: int) -> None:
    """Append to `hashes` those of the full blocks of `token_ids` that it does not cover yet."""
    parent = hashes[-1] if hashes else root
    for start in range(len(hashes) * block_size, len(token_ids) - block_size + 1, block_size):
        tokens = token_ids[start : start + block_size].tobytes()
        parent = hashlib.blake2b(parent + tokens, digest_size=DIGEST_SIZE).digest()
        hashes.append(parent)
