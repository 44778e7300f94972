"""bfloat16 weights in panels: the kernel against exact sums."""

import pytest
import torch

from kvasir_runtime.huge_pages import Arena
from kvasir_runtime.kernels.cpu.library import Library
from kvasir_runtime.layers.ops import TorchOps
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


@pytest.mark.parametrize("rows", [1, 2, 5, 16, 17, 40, 300])
@pytest.mark.parametrize("shape", [(16, 64), (48, 62), (176, 256)])
def test_a_gated_product_is_that_of_two_steps(library: Library, rows: int, shape: tuple[int, int]) -> None:
    gate, gated, x = (
        torch.randn(shape).bfloat16(),
        torch.randn(shape).bfloat16(),
        torch.randn(rows, shape[1]).bfloat16(),
    )
    method = Bf16Method(library)
    assert method.gates(*shape)
    both = method.pack(torch.cat((gate, gated)), None)(x)
    want = TorchOps().silu_and_mul(both.float()).bfloat16()
    torch.testing.assert_close(method.pack_silu_gated(gate, gated)(x), want, rtol=2**-7, atol=1e-6)


def test_a_gated_row_does_not_depend_on_its_neighbours(library: Library) -> None:
    linear = Bf16Method(library).pack_silu_gated(torch.randn(96, 64).bfloat16(), torch.randn(96, 64).bfloat16())
    x = torch.randn(200, 64).bfloat16()
    whole = linear(x)
    assert all(torch.equal(linear(x[:rows]), whole[:rows]) for rows in (1, 2, 7, 16, 17, 30, 130))


def test_what_cannot_be_gated_in_one(library: Library) -> None:
    assert not Bf16Method(library).gates(17, 64)
    assert not Bf16Method(library).gates(16, 63)
