"""Multiplications with low-bit weights and with experts, against dequantised weights and one expert at a time."""

import pytest
import torch

from kvasir_runtime.kernels.gpu.experts import combine_experts, expand_to_experts, experts_oracle, sort_by_expert
from kvasir_runtime.kernels.gpu.low_bit_linear import (
    Int4Weight,
    fp8_linear,
    int4_linear,
    int4_oracle,
    pack_int4,
    quantize_fp8,
    quantize_int4,
)
from tests.kvasir_runtime.kernels.gpu.device import DEVICE

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
CLOSE = {F32: (1e-4, 1e-4), F16: (5e-3, 5e-3), BF16: (2e-2, 2e-2)}
slow = pytest.mark.slow

SHAPES = [
    pytest.param(3, 256, 70, F32, id="3-256-70-f32"),
    pytest.param(20, 128, 96, BF16, id="20-128-96-bf16", marks=slow),
    pytest.param(130, 384, 140, F16, id="130-384-140-f16", marks=slow),
]


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    rtol, atol = CLOSE[got.dtype]
    torch.testing.assert_close(got.float(), expected.float(), rtol=rtol, atol=atol * expected.abs().max().item())


@pytest.mark.parametrize(("rows", "inputs", "outputs", "dtype"), SHAPES)
def test_int4(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    """The weight that was packed, scale by scale; x is a slice."""
    torch.manual_seed(0)
    weight = quantize_int4(torch.randn(outputs, inputs).to(DEVICE, dtype))
    x = torch.randn(rows, inputs + 8).to(DEVICE, dtype)[:, :inputs]
    assert_close(int4_linear(x, weight), x.float() @ int4_oracle(weight).T)


def test_int4_weights_come_close_to_what_they_were() -> None:
    """Within half a step of each group; zeros of other checkpoints than ours are honoured."""
    torch.manual_seed(0)
    weight = torch.randn(10, 256)
    packed = quantize_int4(weight)
    step = packed.scales_OQ.repeat_interleave(128, dim=1)
    assert ((int4_oracle(packed) - weight).abs() <= step * 0.51).all()
    codes = torch.randint(0, 16, (33, 128))
    zeros, scales = torch.randint(0, 16, (33, 1), dtype=torch.int8), torch.rand(33, 1)
    asymmetric = Int4Weight(*(each.to(DEVICE) for each in (pack_int4(codes), scales, zeros)))
    x = torch.randn(2, 128).to(DEVICE)
    assert_close(int4_linear(x, asymmetric).cpu(), x.cpu() @ ((codes - zeros) * scales).T)
    with pytest.raises(ValueError, match="multiple of 128, got 100"):
        quantize_int4(torch.ones(2, 100))


@pytest.mark.parametrize(("rows", "inputs", "outputs", "dtype"), SHAPES)
def test_fp8(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    """Codes times scales."""
    torch.manual_seed(0)
    weight = quantize_fp8(torch.randn(outputs, inputs).to(DEVICE, dtype))
    x = torch.randn(rows, inputs).to(DEVICE, dtype)
    assert_close(fp8_linear(x, weight), x.float() @ (weight.codes_OI.float() * weight.scales_O[:, None]).T)


@pytest.mark.parametrize(
    ("tokens", "dtype"), [pytest.param(1, BF16), pytest.param(9, F32), pytest.param(90, F32, marks=slow)]
)
def test_experts(tokens: int, dtype: torch.dtype) -> None:
    """Up to the experts and back, one of whom nobody chose."""
    torch.manual_seed(0)
    experts, inputs, middle = 5, 80, 100
    up, down = torch.randn(experts, middle, inputs) / 9, torch.randn(experts, inputs, middle) / 10
    up, down, x = (each.to(DEVICE, dtype) for each in (up, down, torch.randn(tokens, inputs)))
    chosen = torch.stack([torch.randperm(experts - 1)[:2] for _ in range(tokens)]).to(DEVICE)
    factors = torch.rand(tokens, 2).to(DEVICE, dtype)
    rows = sort_by_expert(chosen, experts)
    expanded = expand_to_experts(x, up, rows)
    wanted = experts_oracle(x, up, chosen).flatten(0, 1)[rows.places_N.long()]
    assert_close(expanded, wanted)
    combined = combine_experts(expanded, down, rows, factors)
    back = torch.zeros(tokens * 2, middle, device=DEVICE).index_copy(0, rows.places_N.long(), expanded.float())
    each = torch.einsum("nm,nom->no", back, down.float()[chosen.flatten()]).unflatten(0, (tokens, 2))
    assert_close(combined, (each * factors.float()[..., None]).sum(1))
