"""The small GPU kernels against plain torch."""

import pytest
import torch

from kvasir_runtime.kernels.gpu.ops import TritonOps
from kvasir_runtime.layers.ops import TorchOps
from tests.kvasir_runtime.kernels.gpu.device import DEVICE, TOLERANCE


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("rows", "features"), [(1, 1024), (3, 80), (70, 64), (2, 5120)])
def test_rms_norm(rows: int, features: int, dtype: torch.dtype) -> None:
    """With and without a residual; the residual becomes the sum."""
    torch.manual_seed(0)
    x, residual = (torch.randn(rows, features, dtype=dtype).to(DEVICE) for _ in range(2))
    weight = torch.rand(features).to(DEVICE)
    expected = TorchOps().rms_norm(x, weight, 1e-6)
    torch.testing.assert_close(TritonOps().rms_norm(x, weight, 1e-6), expected, **TOLERANCE[dtype])
    expected, total = TorchOps().add_rms_norm(x, residual, weight, 1e-6)
    got, stream = TritonOps().add_rms_norm(x, residual, weight, 1e-6)
    assert stream.data_ptr() == residual.data_ptr()
    torch.testing.assert_close(stream, total, **TOLERANCE[dtype])
    torch.testing.assert_close(got, expected, **TOLERANCE[dtype])


def test_heads_in_the_middle_of_a_projection_are_normalised() -> None:
    """Queries of 3 heads are a slice of wider rows; each head is normalised by itself."""
    torch.manual_seed(0)
    heads = torch.randn(5, 8, 48).to(DEVICE)[:, 2:5]
    weight = torch.rand(48).to(DEVICE)
    expected = TorchOps().rms_norm(heads.contiguous(), weight, 1e-6)
    torch.testing.assert_close(TritonOps().rms_norm(heads, weight, 1e-6), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("rows", "features"), [(1, 64), (3, 2600)])
def test_gates(rows: int, features: int, dtype: torch.dtype) -> None:
    """Large values of both signs do not overflow."""
    torch.manual_seed(0)
    x = (torch.randn(rows, features, dtype=dtype) * 40).to(DEVICE)
    x[0, :4], x[0, features // 2 :][:4] = torch.tensor([-1e4, 1e4, -0.1, 0.1]), 0.5
    for name in ("silu_and_mul", "gelu_tanh_and_mul"):
        expected = getattr(TorchOps(), name)(x.double()).to(dtype)
        torch.testing.assert_close(getattr(TritonOps(), name)(x), expected, **TOLERANCE[dtype])
