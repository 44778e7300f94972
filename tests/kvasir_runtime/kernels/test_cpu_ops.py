"""The small CPU kernels against plain torch."""

from typing import Any

import pytest
import torch

from kvasir_runtime.kernels.cpu.ops import CpuOps
from kvasir_runtime.layers.ops import TorchOps
from tests.kvasir_runtime.kernels import variants

TOLERANCE: dict[torch.dtype, Any] = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-6},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 1e-3},
}


@pytest.fixture(params=variants.params())
def ops(request: pytest.FixtureRequest) -> CpuOps:
    return CpuOps(variants.library(request.param))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("rows", "features"), [(1, 1024), (3, 80), (100, 640)])
def test_rms_norm(ops: CpuOps, rows: int, features: int, dtype: torch.dtype) -> None:
    """With and without a residual; the residual becomes the sum."""
    torch.manual_seed(0)
    x, residual, weight = (
        torch.randn(rows, features, dtype=dtype),
        torch.randn(rows, features, dtype=dtype),
        torch.rand(features),
    )
    torch.testing.assert_close(ops.rms_norm(x, weight, 1e-6), TorchOps().rms_norm(x, weight, 1e-6), **TOLERANCE[dtype])
    expected = TorchOps().add_rms_norm(x, residual, weight, 1e-6)
    for got, want in zip(ops.add_rms_norm(x, residual, weight, 1e-6), expected, strict=True):
        torch.testing.assert_close(got, want, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rows", [1, 7, 200])
def test_silu_and_mul(ops: CpuOps, rows: int, dtype: torch.dtype) -> None:
    """Large values of both signs do not overflow."""
    torch.manual_seed(0)
    x = torch.randn(rows, 384, dtype=dtype) * 60
    torch.testing.assert_close(ops.silu_and_mul(x), TorchOps().silu_and_mul(x), **TOLERANCE[dtype])


def test_a_slice_of_a_tensor_is_normalised(ops: CpuOps) -> None:
    """Heads that are a strided view of a projection give the same as a copy of them."""
    x = torch.randn(5, 300)[:, 40:168].unflatten(-1, (2, 64))
    weight = torch.rand(64)
    torch.testing.assert_close(ops.rms_norm(x, weight, 1e-6), TorchOps().rms_norm(x.contiguous(), weight, 1e-6))
