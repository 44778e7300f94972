"""Attention kernels against the reference: shapes, dtypes, windows, soft-capping, splits, caches with scales.

Blocks are scattered, and what no token of the step is in is NaN, as an earlier owner may have left it.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kvasir_runtime.attention.metadata import AttentionMetadata, AttentionSpec, Sequences
from kvasir_runtime.attention.reference import ReferenceBackend
from kvasir_runtime.kernels.gpu.decode_attention import decode_attention, plan_splits
from kvasir_runtime.kernels.gpu.paged_kv import pack_cache, unpack_cache
from kvasir_runtime.kernels.gpu.prefill_attention import prefill_attention
from kvasir_runtime.kernels.gpu.rope_kv import rope_and_write
from tests.kvasir_runtime.attention.steps import make_cache, make_step
from tests.kvasir_runtime.kernels.gpu.device import DEVICE, TOLERANCE

BF16, F16, F32, INT8, FP8 = torch.bfloat16, torch.float16, torch.float32, torch.int8, torch.float8_e4m3fn

MHA_64 = AttentionSpec(2, 2, 64, 0.125)
GQA2_64 = AttentionSpec(4, 2, 64, 0.125)
GQA3_80 = AttentionSpec(6, 2, 80, 0.1)
GQA4_128 = AttentionSpec(8, 2, 128, 0.09)
GQA8_96 = AttentionSpec(8, 1, 96, 0.1)
SOFTCAP_256 = AttentionSpec(4, 2, 256, 0.0625, softcap=20.0)
WINDOW_64 = AttentionSpec(4, 2, 64, 0.125, window=100)

slow = pytest.mark.slow

# Pairs of everything with everything that matters to it, rather than all combinations.
DECODES = [
    pytest.param(GQA2_64, 16, F32, F32, id="gqa2-64-f32"),
    pytest.param(GQA4_128, 16, BF16, BF16, id="gqa4-128-bf16"),
    pytest.param(WINDOW_64, 16, F32, INT8, id="window-64-f32-int8"),
    pytest.param(MHA_64, 32, F16, F16, id="mha-64-f16-blocks-of-32", marks=slow),
    pytest.param(GQA3_80, 8, F32, F32, id="gqa3-80-f32-blocks-of-8", marks=slow),
    pytest.param(GQA8_96, 16, BF16, FP8, id="gqa8-96-bf16-fp8", marks=slow),
    pytest.param(SOFTCAP_256, 16, F32, F32, id="softcap-256-f32", marks=slow),
    pytest.param(SOFTCAP_256, 64, BF16, INT8, id="softcap-256-bf16-int8-blocks-of-64", marks=slow),
    pytest.param(replace(WINDOW_64, softcap=5.0), 16, F32, FP8, id="window-softcap-64-f32-fp8", marks=slow),
    pytest.param(replace(SOFTCAP_256, window=200), 16, BF16, BF16, id="window-softcap-256-bf16", marks=slow),
]

PREFILLS = [
    pytest.param(GQA2_64, 16, F32, F32, id="gqa2-64-f32"),
    pytest.param(GQA4_128, 16, BF16, INT8, id="gqa4-128-bf16-int8"),
    pytest.param(WINDOW_64, 16, F32, F32, id="window-64-f32"),
    pytest.param(MHA_64, 32, BF16, BF16, id="mha-64-bf16-blocks-of-32", marks=slow),
    pytest.param(GQA3_80, 8, F32, F32, id="gqa3-80-f32-blocks-of-8", marks=slow),
    pytest.param(GQA8_96, 64, F16, FP8, id="gqa8-96-f16-fp8-blocks-of-64", marks=slow),
    pytest.param(SOFTCAP_256, 16, F32, F32, id="softcap-256-f32", marks=slow),
    pytest.param(replace(WINDOW_64, softcap=5.0), 16, BF16, BF16, id="window-softcap-64-bf16", marks=slow),
]


def on_device(step: AttentionMetadata) -> AttentionMetadata:
    def sequences(them: Sequences) -> Sequences:
        return Sequences(them.tables_NM.to(DEVICE), them.lengths_N.to(DEVICE))

    return AttentionMetadata(
        step.slots_T.to(DEVICE),
        step.positions_T.to(DEVICE),
        sequences(step.decodes),
        sequences(step.prefills),
        step.starts_P.to(DEVICE),
    )


def caches(
    spec: AttentionSpec, block_size: int, num_blocks: int, dtype: torch.dtype, kv_dtype: torch.dtype, used: Sequences
) -> tuple[Tensor, Tensor]:
    """The same numbers in `kv_dtype`, unwritten tokens NaN where that can say so, and for the reference."""
    if kv_dtype in (INT8, FP8):
        packed = pack_cache(make_cache(spec, F32, block_size, num_blocks), kv_dtype)
        return packed.to(DEVICE), unpack_cache(packed).to(DEVICE)
    cache = make_cache(spec, kv_dtype, block_size, num_blocks, used).to(DEVICE)
    return cache, cache


def rows(count: int, spec: AttentionSpec, dtype: torch.dtype) -> Tensor:
    """Queries as a slice of a wider projection."""
    wide = torch.randn(count, (spec.num_heads + 3) * spec.head_dim, dtype=dtype).to(DEVICE)
    heads: Tensor = wide.unflatten(1, (-1, spec.head_dim))
    return heads[:, : spec.num_heads]


@pytest.mark.parametrize(("spec", "block_size", "dtype", "kv_dtype"), DECODES)
def test_decode(spec: AttentionSpec, block_size: int, dtype: torch.dtype, kv_dtype: torch.dtype) -> None:
    """From one token to several splits, block and tile borders included; fewer items than the grid has room for."""
    torch.manual_seed(0)
    lengths = [1, block_size, block_size + 1, 255, 257, 1000]
    step = on_device(make_step(lengths, [], block_size, 330))
    packed, cache = caches(spec, block_size, 330, dtype, kv_dtype, step.decodes)
    q_NHC = rows(len(lengths), spec, dtype)
    plan = plan_splits(step.decodes, spec, items=5)
    got = decode_attention(q_NHC, packed, step.decodes, spec, plan)
    torch.testing.assert_close(got, ReferenceBackend().decode(q_NHC, cache, spec, step), **TOLERANCE[dtype])


@pytest.mark.parametrize(("spec", "block_size", "dtype", "kv_dtype"), PREFILLS)
def test_prefill(spec: AttentionSpec, block_size: int, dtype: torch.dtype, kv_dtype: torch.dtype) -> None:
    """Whole prompts, chunks after what is cached, and single rows, which are decode rows, between them."""
    torch.manual_seed(0)
    step = on_device(make_step([5], [(20, 20), (1, 41), (7, 190), (1, 1), (150, 150)], block_size, 80))
    packed, cache = caches(spec, block_size, 80, dtype, kv_dtype, step.prefills)
    q_PHC = rows(179, spec, dtype)
    got = prefill_attention(q_PHC, packed, step.prefills, step.starts_P, spec)
    torch.testing.assert_close(got, ReferenceBackend().prefill(q_PHC, cache, spec, step), **TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("items", "lengths", "expected"),
    [
        (4, [0, 256, 0, 1024], [(1, 1), (3, 4)]),  # 1280 / 4 = 320 tokens a split, in whole tiles
        (16, [257, 1, 0], [(0, 2), (1, 1)]),  # never less than 256
        (1, [4000, 4000], [(0, 1), (1, 1)]),  # 8000 tokens a split
        (8, [8192], [(0, 8)]),
    ],
)
def test_splits_are_even_and_chosen_on_the_device(
    items: int, lengths: list[int], expected: list[tuple[int, int]]
) -> None:
    """Rows and their number of items; padding rows have none, and what the grid has beyond is marked."""
    tables = torch.zeros(len(lengths), 1, dtype=torch.int32, device=DEVICE)
    sequences = Sequences(tables, torch.tensor(lengths, dtype=torch.int32, device=DEVICE))
    plan = plan_splits(sequences, MHA_64, items=items)
    wanted = [row for row, count in expected for _ in range(count)]
    assert plan.rows_I.tolist() == wanted + [-1] * (items + len(lengths) - len(wanted))
    counts = dict(expected)
    assert plan.starts_N1.diff().tolist() == [counts.get(row, 0) for row in range(len(lengths))]


def test_splits_of_a_window_count_what_it_shows() -> None:
    """A window of 100 needs one split however long the sequence is."""
    sequences = Sequences(torch.zeros(1, 1, dtype=torch.int32), torch.tensor([50_000], dtype=torch.int32))
    plan = plan_splits(Sequences(sequences.tables_NM.to(DEVICE), sequences.lengths_N.to(DEVICE)), WINDOW_64, items=16)
    assert plan.starts_N1.tolist() == [0, 1]


def test_padding_rows_give_zeros_and_touch_nothing() -> None:
    """Rows of length 0, as a replayed graph has them, beside one that is real."""
    torch.manual_seed(0)
    step = on_device(make_step([300], [], 16, 30))
    _, cache = caches(GQA2_64, 16, 30, F32, F32, step.decodes)
    sequences = Sequences(
        torch.nn.functional.pad(step.decodes.tables_NM, (0, 0, 1, 2)),
        torch.nn.functional.pad(step.decodes.lengths_N, (1, 2)),
    )
    q_NHC = rows(4, GQA2_64, F32)
    got = decode_attention(q_NHC, cache, sequences, GQA2_64, plan_splits(sequences, GQA2_64, items=2))
    expected = ReferenceBackend().decode(q_NHC[1:2], cache, GQA2_64, step)
    torch.testing.assert_close(got[1:2], expected, **TOLERANCE[F32])
    assert not got[[0, 2, 3]].any()


ROPES = [
    pytest.param(GQA2_64, 16, F32, F32, id="gqa2-64-f32"),
    pytest.param(GQA4_128, 16, BF16, INT8, id="gqa4-128-bf16-int8"),
    pytest.param(GQA8_96, 16, BF16, FP8, id="gqa8-96-bf16-fp8"),
    pytest.param(MHA_64, 32, F16, F16, id="mha-64-f16-blocks-of-32", marks=slow),
    pytest.param(GQA3_80, 8, BF16, BF16, id="gqa3-80-bf16-blocks-of-8", marks=slow),
    pytest.param(SOFTCAP_256, 64, F32, INT8, id="256-f32-int8-blocks-of-64", marks=slow),
    pytest.param(AttentionSpec(20, 10, 64, 1.0), 16, F32, FP8, id="20-heads-64-f32-fp8", marks=slow),
]


@pytest.mark.parametrize(("spec", "block_size", "dtype", "kv_dtype"), ROPES)
def test_rope_and_write(spec: AttentionSpec, block_size: int, dtype: torch.dtype, kv_dtype: torch.dtype) -> None:
    """q, k and v are slices of one projection; only the slots of the step change, and none for a padding row."""
    torch.manual_seed(0)
    step = on_device(make_step([5, 40], [(3, 3), (6, 310)], block_size, 80))
    count, heads = len(step.slots_T), spec.num_heads + 2 * spec.num_kv_heads
    step.slots_T[1] = -1
    projected = torch.randn(count, heads * spec.head_dim, dtype=dtype).to(DEVICE).unflatten(1, (heads, spec.head_dim))
    q, k, v = projected.split([spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], dim=1)
    cos_sin = torch.randn(512, spec.head_dim).to(DEVICE)
    written, before = caches(spec, block_size, 80, dtype, kv_dtype, step.decodes)
    got = rope_and_write(q, k, v, cos_sin, written, step.positions_T, step.slots_T)
    real = [row for row in range(count) if row != 1]
    plain = before.to(dtype).clone()
    kept = replace(step, slots_T=step.slots_T[real], positions_T=step.positions_T[real])
    expected = ReferenceBackend().write_kv(q[real], k[real], v[real], cos_sin, plain, kept)
    torch.testing.assert_close(got[real], expected, **TOLERANCE[dtype])
    check_written(written, before, plain, kept, TOLERANCE[dtype], {INT8: 1 / 127, FP8: 1 / 14}.get(kv_dtype, 0.0))


def check_written(
    written: Tensor, before: Tensor, plain: Tensor, step: AttentionMetadata, tolerance: dict[str, Any], coarse: float
) -> None:
    """Slots of the step hold what the reference wrote, within `coarse` of a row's largest; the others what they had."""
    numbers, size = unpack_cache(written), written.shape[3]
    blocks, offsets = step.slots_T // size, step.slots_T % size
    got, wanted = (cache[:, blocks, :, offsets].float() for cache in (numbers, plain))
    step_size = wanted.abs().amax(-1, keepdim=True) * coarse
    assert ((got - wanted).abs() <= step_size + tolerance["atol"] + tolerance["rtol"] * wanted.abs()).all()
    untouched = torch.ones(numbers.shape[1:4], dtype=torch.bool)
    untouched[blocks, :, offsets] = False
    torch.testing.assert_close(numbers[:, untouched], before[:, untouched].float(), equal_nan=True, rtol=0, atol=0)
