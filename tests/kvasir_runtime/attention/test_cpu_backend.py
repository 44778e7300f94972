"""The CPU backend against the reference, over shapes, dtypes, windows, soft-capping and scattered blocks."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kvasir_runtime.attention.cpu_backend import CpuBackend
from kvasir_runtime.attention.metadata import AttentionMetadata, AttentionSpec, Sequences
from kvasir_runtime.attention.reference import ReferenceBackend
from tests.kvasir_runtime.attention.steps import make_cache, make_step
from tests.kvasir_runtime.kernels import variants

TOLERANCE: dict[torch.dtype, Any] = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 1e-2},
}

SPECS = {
    "mha-64": AttentionSpec(4, 4, 64, 0.125),
    "gqa4-64": AttentionSpec(8, 2, 64, 0.125),
    "gqa8-128": AttentionSpec(16, 2, 128, 0.09),
    "gqa2-80": AttentionSpec(4, 2, 80, 0.1),
    "gqa2-256-softcap": AttentionSpec(4, 2, 256, 0.0625, softcap=20.0),
    "gqa2-64-window": AttentionSpec(4, 2, 64, 0.125, window=33),
}


@pytest.fixture(params=variants.params())
def backend(request: pytest.FixtureRequest) -> CpuBackend:
    torch.set_num_threads(2)
    return CpuBackend(variants.library(request.param))


def arranged(cache_2BKSC: Tensor, backend: CpuBackend) -> Tensor:
    """The cache as the kernels of `backend` keep it: as it is, or in tiles of pairs (see attention.cpp)."""
    if not backend.library.kv_paired(cache_2BKSC.dtype, cache_2BKSC.shape[3]):
        return cache_2BKSC
    keys, values = cache_2BKSC.unflatten(3, (-1, 16))
    key_pairs = keys.unflatten(-1, (-1, 2)).transpose(-3, -2)
    value_pairs = values.unflatten(-2, (-1, 2)).transpose(-2, -1)
    return torch.stack([pairs.reshape(cache_2BKSC.shape[1:]) for pairs in (key_pairs, value_pairs)])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("block_size", [8, 16, 64])
def test_decode(backend: CpuBackend, spec: AttentionSpec, block_size: int, dtype: torch.dtype) -> None:
    """One token of sequences of 1 token to several chunks of 512, block borders included."""
    torch.manual_seed(0)
    lengths = [1, block_size, block_size + 1, 511, 512, 513, 1100]
    step = make_step(lengths, [], block_size, 600)
    cache = make_cache(spec, dtype, block_size, 600, step.decodes)
    q_NHC = torch.randn(len(lengths), spec.num_heads, spec.head_dim, dtype=dtype)
    expected = ReferenceBackend().decode(q_NHC, cache, spec, step)
    torch.testing.assert_close(
        backend.decode(q_NHC, arranged(cache, backend), spec, step), expected, **TOLERANCE[dtype]
    )


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_prefill(backend: CpuBackend, spec: AttentionSpec, dtype: torch.dtype) -> None:
    """Whole prompts and chunks after what is cached, beside decode rows."""
    torch.manual_seed(0)
    step = make_step([5, 40], [(20, 20), (7, 90), (50, 50)], 16, 80)
    cache = make_cache(spec, dtype, 16, 80, step.prefills)
    q_PHC = torch.randn(77, spec.num_heads, spec.head_dim, dtype=dtype)
    expected = ReferenceBackend().prefill(q_PHC, cache, spec, step)
    torch.testing.assert_close(
        backend.prefill(q_PHC, arranged(cache, backend), spec, step), expected, **TOLERANCE[dtype]
    )


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_write_kv_from_one_projection(backend: CpuBackend, spec: AttentionSpec, dtype: torch.dtype) -> None:
    """q, k and v are slices of one tensor; only the step's slots change."""
    torch.manual_seed(0)
    step = make_step([5, 40], [(20, 20), (300, 310)], 16, 80)
    rows, head_dim = len(step.slots_T), spec.head_dim
    qkv = torch.randn(rows, (spec.num_heads + 2 * spec.num_kv_heads) * head_dim, dtype=dtype)
    q, k, v = qkv.split([spec.num_heads * head_dim, spec.num_kv_heads * head_dim, spec.num_kv_heads * head_dim], dim=-1)
    heads = (q.unflatten(-1, (-1, head_dim)), k.unflatten(-1, (-1, head_dim)), v.unflatten(-1, (-1, head_dim)))
    cos_sin = torch.randn(512, head_dim)
    cache = make_cache(spec, dtype, 16, 80)
    expected_cache = cache.clone()
    expected = ReferenceBackend().write_kv(*heads, cos_sin, expected_cache, step)
    cache = arranged(cache, backend)
    torch.testing.assert_close(backend.write_kv(*heads, cos_sin, cache, step), expected, **TOLERANCE[dtype])
    torch.testing.assert_close(cache, arranged(expected_cache, backend), **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_row_does_not_depend_on_its_neighbours(backend: CpuBackend, dtype: torch.dtype) -> None:
    """The same row gives the same bits alone and in a batch, with one thread and with two."""
    torch.manual_seed(0)
    spec = SPECS["gqa4-64"]
    step = make_step([700, 30, 1300], [], 16, 200)
    cache = make_cache(spec, dtype, 16, 200)
    q_NHC = torch.randn(3, spec.num_heads, spec.head_dim, dtype=dtype)
    together = backend.decode(q_NHC, cache, spec, step)
    torch.set_num_threads(1)
    first = Sequences(step.decodes.tables_NM[:1].contiguous(), step.decodes.lengths_N[:1])
    alone = AttentionMetadata(step.slots_T[:1], step.positions_T[:1], first, step.prefills, step.starts_P)
    assert torch.equal(backend.decode(q_NHC[:1], cache, spec, alone), together[:1])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_row_does_not_depend_on_how_its_prompt_is_cut(backend: CpuBackend, dtype: torch.dtype) -> None:
    """Rows of a prompt give the same in one prefill and in chunks of any size."""
    torch.manual_seed(0)
    spec = SPECS["gqa2-64-window"]
    whole = make_step([], [(100, 100)], 16, 20)
    cache = make_cache(spec, dtype, 16, 20)
    q_PHC = torch.randn(100, spec.num_heads, spec.head_dim, dtype=dtype)
    expected = backend.prefill(q_PHC, cache, spec, whole)
    for start, end in ((0, 1), (1, 34), (34, 35), (35, 100)):
        part = AttentionMetadata(
            whole.slots_T[start:end],
            whole.positions_T[start:end],
            whole.decodes,
            Sequences(whole.prefills.tables_NM, torch.tensor([end], dtype=torch.int32)),
            torch.tensor([0, end - start], dtype=torch.int32),
        )
        torch.testing.assert_close(
            backend.prefill(q_PHC[start:end], cache, spec, part), expected[start:end], **TOLERANCE[dtype]
        )


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_preempted_row_is_computed_again_as_it_was(backend: CpuBackend, spec: AttentionSpec) -> None:
    """A token that was decoded has the same bits when it comes back as part of a prompt (up to a chunk's length)."""
    torch.manual_seed(0)
    step = make_step([], [(70, 300)], 16, 20)
    cache = arranged(make_cache(spec, torch.bfloat16, 16, 20), backend)
    q_PHC = torch.randn(70, spec.num_heads, spec.head_dim, dtype=torch.bfloat16)
    together = backend.prefill(q_PHC, cache, spec, step)
    for row in (0, 1, 33, 69):
        last = Sequences(step.prefills.tables_NM, torch.tensor([231 + row], dtype=torch.int32))
        one = AttentionMetadata(step.slots_T[:1], step.positions_T[:1], last, step.decodes, step.starts_P)
        assert torch.equal(backend.decode(q_PHC[row : row + 1].contiguous(), cache, spec, one)[0], together[row])
