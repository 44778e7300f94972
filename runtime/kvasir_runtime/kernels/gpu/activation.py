"""The gate of an MLP: half of the features, activated, times the other half. Oracle: `layers.ops.TorchOps`.

Source: arXiv 2002.05202.
"""

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvasir_runtime.kernels.gpu.numerics import sigmoid

ELEMENTS: Final = 1024


@triton.jit
def activated(gate, GELU: tl.constexpr):
    """SiLU, or GELU in its tanh form, of float32 numbers."""
    if GELU:
        return gate * sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))  # (1 + tanh u) / 2
    else:  # noqa: RET505 - the branch is taken when the kernel is compiled
        return gate * sigmoid(gate)


@triton.jit
def _gate(x_ptr, out_ptr, stride, size, GELU: tl.constexpr, ELEMENTS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * ELEMENTS + tl.arange(0, ELEMENTS)
    inside = columns < size
    gate = tl.load(x_ptr + row * stride + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * stride + size + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * size + columns, (activated(gate, GELU) * up).to(out_ptr.dtype.element_ty), mask=inside)


def gate_and_mul(x_RF: Tensor, *, gelu: bool) -> Tensor:
    """`[R, F]` to `[R, F / 2]`: SiLU or, with `gelu`, GELU in its tanh form."""
    assert x_RF.stride(1) == 1
    rows, size = x_RF.shape[0], x_RF.shape[1] // 2
    out_RF = torch.empty((rows, size), dtype=x_RF.dtype, device=x_RF.device)
    _gate[(rows, -(-size // ELEMENTS))](x_RF, out_RF, x_RF.stride(0), size, GELU=gelu, ELEMENTS=ELEMENTS, num_warps=4)
    return out_RF
