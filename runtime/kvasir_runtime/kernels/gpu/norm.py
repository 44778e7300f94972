"""Root mean square normalisation, alone or after adding to the residual stream. Oracle: `layers.ops.TorchOps`.

Source: arXiv 1910.07467. Shape suffixes: R rows of a program, D columns.
"""

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvasir_runtime.kernels.gpu.numerics import power_of_two

ELEMENTS: Final = 2048
"""Of a program: one row, or, where rows are heads, many."""


@triton.jit
def _rms_norm(
    x_ptr, residual_ptr, weight_ptr, out_ptr, num_rows, inner, x_stride_outer, x_stride_inner, eps,
    D: tl.constexpr, D_PAD: tl.constexpr, R: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    rows_R = tl.program_id(0) * R + tl.arange(0, R)
    columns_D = tl.arange(0, D_PAD)
    inside_RD = (rows_R < num_rows)[:, None] & (columns_D < D)[None, :]
    starts_R = (rows_R // inner).to(tl.int64) * x_stride_outer + (rows_R % inner) * x_stride_inner
    at_RD = rows_R.to(tl.int64)[:, None] * D + columns_D[None, :]
    x_RD = tl.load(x_ptr + starts_R[:, None] + columns_D[None, :], mask=inside_RD, other=0.0).to(tl.float32)
    dtype = out_ptr.dtype.element_ty
    if ADD:
        x_RD += tl.load(residual_ptr + at_RD, mask=inside_RD, other=0.0).to(tl.float32)
        x_RD = x_RD.to(dtype)  # the stream is what is stored, also to the norm
        tl.store(residual_ptr + at_RD, x_RD, mask=inside_RD)
        x_RD = x_RD.to(tl.float32)
    weight_D = tl.load(weight_ptr + columns_D, mask=columns_D < D, other=0.0)
    scale_R = tl.rsqrt(tl.sum(x_RD * x_RD, 1) / D + eps)
    tl.store(out_ptr + at_RD, (x_RD * scale_R[:, None] * weight_D[None, :]).to(dtype), mask=inside_RD)


def rms_norm(x: Tensor, weight_D: Tensor, eps: float, residual_RD: Tensor | None = None) -> Tensor:
    """The norm over the last dimension of `x`, `[R, D]` or `[T, H, D]` (any strides but the last), contiguous.

    With `residual_RD`, which is contiguous and becomes `residual + x`, the norm of that sum.
    """
    assert x.stride(-1) == 1
    assert residual_RD is None or residual_RD.is_contiguous()
    inner, size = x.shape[1] if x.ndim == 3 else 1, x.shape[-1]
    rows, padded = x.numel() // size, power_of_two(size)
    at_once = max(1, ELEMENTS // padded)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _rms_norm[(-(-rows // at_once),)](
        x,
        out if residual_RD is None else residual_RD,
        weight_D,
        out,
        rows,
        inner,
        x.stride(0),
        x.stride(1) if x.ndim == 3 else 0,
        eps,
        D=size,
        D_PAD=padded,
        R=at_once,
        ADD=residual_RD is not None,
        num_warps=4 if padded <= 4096 else 8,
    )
    return out
