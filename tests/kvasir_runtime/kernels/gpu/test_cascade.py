"""Decode with shared prefixes against the reference, which knows nothing of sharing."""

from dataclasses import replace

import pytest
import torch

from kvasir_runtime.attention.metadata import AttentionSpec, Sequences
from kvasir_runtime.attention.reference import ReferenceBackend
from kvasir_runtime.kernels.gpu.cascade import SharedPrefixes, begins_of, cascade_decode
from kvasir_runtime.kernels.gpu.decode_attention import plan_splits
from kvasir_runtime.kernels.gpu.paged_kv import pack_cache, unpack_cache
from tests.kvasir_runtime.attention.steps import make_cache, make_step
from tests.kvasir_runtime.kernels.gpu.device import DEVICE, TOLERANCE

GQA2 = AttentionSpec(4, 2, 64, 0.125)
BF16, F32, INT8 = torch.bfloat16, torch.float32, torch.int8
slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("spec", "dtype", "kv_dtype"),
    [
        pytest.param(GQA2, F32, F32, id="f32"),
        pytest.param(AttentionSpec(6, 2, 80, 0.1, softcap=9.0), F32, F32, id="gqa3-80-softcap", marks=slow),
        pytest.param(AttentionSpec(8, 1, 128, 0.1), BF16, INT8, id="gqa8-128-bf16-int8", marks=slow),
        pytest.param(replace(GQA2, window=150), F32, F32, id="window", marks=slow),
    ],
)
def test_cascade(spec: AttentionSpec, dtype: torch.dtype, kv_dtype: torch.dtype) -> None:
    """A group with a long prefix, rows without one, and a group whose prefix is one block."""
    torch.manual_seed(0)
    lengths, starts, shared = [321, 400, 330, 7, 17, 600], [0, 3, 4, 6], [320, 0, 16]
    step = make_step(lengths, [], 16, 130)
    tables = step.decodes.tables_NM
    for first, last, tokens in zip(starts[:-1], starts[1:], shared, strict=True):
        tables[first:last, : tokens // 16] = tables[first, : tokens // 16].clone()
    sequences = Sequences(tables.to(DEVICE), step.decodes.lengths_N.to(DEVICE))
    cache = make_cache(spec, F32, 16, 130)
    packed = pack_cache(cache, kv_dtype).to(DEVICE)
    q_NHC = torch.randn(len(lengths), spec.num_heads, spec.head_dim).to(DEVICE, dtype)
    prefixes = SharedPrefixes(*(torch.tensor(each, dtype=torch.int32, device=DEVICE) for each in (starts, shared)))
    plan = plan_splits(sequences, spec, items=3, begins_N=begins_of(prefixes))
    got = cascade_decode(q_NHC, packed, sequences, spec, prefixes, plan)
    expected = ReferenceBackend().decode(q_NHC, unpack_cache(packed), spec, replace(step, decodes=sequences))
    torch.testing.assert_close(got, expected, **TOLERANCE[dtype])
