"""bfloat16 weights in panels: the kernel against exact sums."""

import pytest
import torch

from kvasir_runtime.huge_pages import Arena
from kvasir_runtime.kernels.cpu.library import Library
from kvasir_runtime.quantization.bf16 import Bf16Linear, Bf16Method
from kvasir_runtime.quantization.plain import PlainLinear
from tests.kvasir_runtime.kernels import variants


@pytest.fixture
def library() -> Library:
    if "avx512bf16" not in variants.NAMES:
        pytest.skip("this CPU has no bfloat16 dot products")
    torch.set_num_threads(2)
    return variants.library("avx512bf16")


def oracle(x_RI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
    out_RO = x_RI.double() @ weight_OI.double().T
    return (out_RO if bias_O is None else out_RO + bias_O.double()).bfloat16()


@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("rows", [1, 2, 12, 15, 16, 17, 24, 121, 250])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 32), (70, 50), (256, 1000), (2, 1), (512, 16)])
def test_kernel(library: Library, rows: int, inputs: int, outputs: int, *, with_bias: bool) -> None:
    """All ways to cut the work, and sizes that fill no panel. float32 sums round far less than the result does."""
    torch.manual_seed(0)
    weight = torch.randn(outputs, inputs).bfloat16()
    bias = torch.randn(outputs).bfloat16() if with_bias else None
    x = torch.randn(rows, inputs).bfloat16()
    got, want = Bf16Linear(library, Arena(), weight, bias)(x), oracle(x, weight, bias)
    torch.testing.assert_close(got, want, rtol=1 / 128, atol=1e-4 * inputs**0.5)


def test_a_row_does_not_depend_on_its_neighbours(library: Library) -> None:
    """The same row gives the same bits in every batch, on any number of threads."""
    torch.manual_seed(0)
    linear, x = Bf16Linear(library, Arena(), torch.randn(100, 64).bfloat16(), None), torch.randn(200, 64).bfloat16()
    together = linear(x)
    torch.set_num_threads(1)
    for count in (1, 5, 16, 17, 90, 200):
        assert torch.equal(linear(x[:count]), together[:count])


def test_rows_that_are_not_contiguous(library: Library) -> None:
    torch.manual_seed(0)
    linear, x = Bf16Linear(library, Arena(), torch.randn(32, 64).bfloat16(), None), torch.randn(64, 9).bfloat16().T
    assert torch.equal(linear(x), linear(x.contiguous()))


def test_no_rows(library: Library) -> None:
    assert Bf16Linear(library, Arena(), torch.randn(32, 64).bfloat16(), None)(torch.empty(0, 64).bfloat16()).shape == (
        0,
        32,
    )


def test_an_odd_number_of_inputs_is_left_to_torch(library: Library) -> None:
    assert isinstance(Bf16Method(library).pack(torch.randn(32, 63).bfloat16(), None), PlainLinear)
