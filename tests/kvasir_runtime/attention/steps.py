"""Steps and caches that attention backends are tested with."""

import torch
from torch import Tensor

from kvasir_runtime.attention.metadata import AttentionMetadata, AttentionSpec, Sequences


def make_step(lengths: list[int], spans: list[tuple[int, int]], block_size: int, num_blocks: int) -> AttentionMetadata:
    """Decode rows of `lengths` tokens and spans of (rows, tokens), on blocks in random order; block 0 stays null."""
    order = (torch.randperm(num_blocks - 1) + 1).int()
    tables, used = [], 0
    for length in lengths + [tokens for _, tokens in spans]:
        count = -(-length // block_size)
        tables.append(order[used : used + count])
        used += count
    starts, positions, owners = [0], [length - 1 for length in lengths], list(range(len(lengths)))
    for number, (rows, tokens) in enumerate(spans):
        starts.append(starts[-1] + rows)
        positions += range(tokens - rows, tokens)
        owners += [len(lengths) + number] * rows
    slots = [
        int(tables[owner][position // block_size]) * block_size + position % block_size
        for owner, position in zip(owners, positions, strict=True)
    ]
    return AttentionMetadata(
        slots_T=torch.tensor(slots),
        positions_T=torch.tensor(positions),
        decodes=sequences(tables[: len(lengths)], lengths),
        prefills=sequences(tables[len(lengths) :], [tokens for _, tokens in spans]),
        starts_P=torch.tensor(starts, dtype=torch.int32),
    )


def sequences(tables: list[Tensor], lengths: list[int]) -> Sequences:
    padded = torch.nn.utils.rnn.pad_sequence(tables, batch_first=True) if tables else torch.zeros(0, 0)
    return Sequences(padded.int(), torch.tensor(lengths, dtype=torch.int32))


def make_cache(spec: AttentionSpec, dtype: torch.dtype, block_size: int, num_blocks: int, *used: Sequences) -> Tensor:
    """Random; with `used`, what no token of theirs is in is NaN, as an earlier owner may have left it."""
    cache = torch.randn(2, num_blocks, spec.num_kv_heads, block_size, spec.head_dim, dtype=dtype)
    if used:
        written = torch.zeros(num_blocks, block_size, dtype=torch.bool)
        for group in used:
            for table, length in zip(group.tables_NM.long(), group.lengths_N.tolist(), strict=True):
                tokens = torch.arange(length)
                written[table[tokens // block_size], tokens % block_size] = True
        cache.masked_fill_(~written[None, :, None, :, None], float("nan"))
    return cache
