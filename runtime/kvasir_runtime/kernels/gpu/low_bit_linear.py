"""Linear layers with weights of 4 bits in groups, or in fp8 (e4m3) with a scale an output: x Wᵀ, widened in registers.

4 bits: weight = (code - zero) * scale, with one scale and one zero for each output and 128 inputs. A group's 64 bytes
hold its first 64 codes in their low halves and its last 64 in the high ones, so that each half meets a run of x.
Source of group-wise scales: arXiv 2306.00978 (AWQ).

Shape suffixes: R rows, I inputs, O outputs, Q groups of inputs, H = I / 2; in kernels M rows and N outputs of a tile.
"""

from dataclasses import dataclass
from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from kvasir_runtime.kernels.gpu.numerics import dot, widen

GROUP: Final = 128
HALF: Final = tl.constexpr(64)


@dataclass(frozen=True, slots=True)
class Int4Weight:
    """codes_OH: uint8; scales_OQ in the dtype of the activations; zeros_OQ: int8, 0 to 15."""

    codes_OH: Tensor
    scales_OQ: Tensor
    zeros_OQ: Tensor


@dataclass(frozen=True, slots=True)
class Fp8Weight:
    """codes_OI: float8_e4m3fn; scales_O: float32."""

    codes_OI: Tensor
    scales_O: Tensor


def quantize_int4(weight_OI: Tensor) -> Int4Weight:
    """Symmetric: the largest magnitude of a group becomes 7 (or -7), zero is 8. I is a multiple of 128."""
    if weight_OI.shape[1] % GROUP:
        raise ValueError(f"inputs must be a multiple of {GROUP}, got {weight_OI.shape[1]}")
    groups_OQG = weight_OI.float().unflatten(1, (-1, GROUP))
    scales_OQ = (groups_OQG.abs().amax(-1) / 7).clamp(min=1e-10).to(weight_OI.dtype)
    codes_OQG = (groups_OQG / scales_OQ.float()[..., None]).round().clamp(-8, 7).to(torch.int8) + 8
    return Int4Weight(pack_int4(codes_OQG.flatten(1)), scales_OQ, torch.full_like(scales_OQ, 8, dtype=torch.int8))


def pack_int4(codes_OI: Tensor) -> Tensor:
    """Codes 0 to 15 in the layout of the kernel: uint8 `[O, I / 2]`."""
    halves = codes_OI.to(torch.uint8).unflatten(1, (-1, 2, GROUP // 2))
    bytes_OQH: Tensor = halves[:, :, 0] | halves[:, :, 1] << 4
    return bytes_OQH.flatten(1)


def int4_oracle(weight: Int4Weight) -> Tensor:
    """The weight as it was meant, float32 `[O, I]`."""
    bytes_OQH = weight.codes_OH.unflatten(1, (-1, GROUP // 2))
    codes_OQG = torch.cat((bytes_OQH & 15, bytes_OQH >> 4), dim=-1).float()
    weight_OQG: Tensor = (codes_OQG - weight.zeros_OQ.float()[..., None]) * weight.scales_OQ.float()[..., None]
    return weight_OQG.flatten(1)


def quantize_fp8(weight_OI: Tensor) -> Fp8Weight:
    """The largest magnitude of an output becomes 448."""
    scales_O = (weight_OI.float().abs().amax(-1) / 448).clamp(min=1e-20)
    return Fp8Weight((weight_OI.float() / scales_O[:, None]).to(torch.float8_e4m3fn), scales_O)


@triton.jit
def _int4_linear(
    x_ptr, codes_ptr, scales_ptr, zeros_ptr, out_ptr, num_rows, num_outputs, x_stride,
    I: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    rows_M = tl.program_id(1) * M + tl.arange(0, M)
    outputs_N = tl.program_id(0) * N + tl.arange(0, N)
    there_M1 = (rows_M < num_rows)[:, None]
    inside_N = outputs_N < num_outputs
    places_H = tl.arange(0, HALF)
    x_at_MH = x_ptr + rows_M.to(tl.int64)[:, None] * x_stride + places_H[None, :]
    codes_at_NH = codes_ptr + outputs_N.to(tl.int64)[:, None] * (I // 2) + places_H[None, :]
    groups_at_N = outputs_N.to(tl.int64) * (I // (2 * HALF))
    acc_MN = tl.zeros((M, N), tl.float32)
    for group in range(I // (2 * HALF)):
        codes_NH = tl.load(codes_at_NH + group * HALF, mask=inside_N[:, None], other=0)
        left_MH = tl.load(x_at_MH + group * (2 * HALF), mask=there_M1, other=0.0)
        right_MH = tl.load(x_at_MH + group * (2 * HALF) + HALF, mask=there_M1, other=0.0)
        scale_N = tl.load(scales_ptr + groups_at_N + group, mask=inside_N, other=0.0).to(tl.float32)
        zero_N1 = tl.load(zeros_ptr + groups_at_N + group, mask=inside_N, other=0)[:, None]
        low_NH = widen((codes_NH & 15).to(tl.int8) - zero_N1, left_MH)
        high_NH = widen((codes_NH >> 4).to(tl.int8) - zero_N1, left_MH)
        sums_MN = dot(left_MH, tl.trans(low_NH), tl.zeros((M, N), tl.float32))
        acc_MN += dot(right_MH, tl.trans(high_NH), sums_MN) * scale_N[None, :]
    out_at_MN = out_ptr + rows_M.to(tl.int64)[:, None] * num_outputs + outputs_N[None, :]
    tl.store(out_at_MN, acc_MN.to(out_ptr.dtype.element_ty), mask=there_M1 & inside_N[None, :])


@triton.jit
def _fp8_linear(
    x_ptr, codes_ptr, scales_ptr, out_ptr, num_rows, num_outputs, x_stride,
    I: tl.constexpr, M: tl.constexpr, N: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    rows_M = tl.program_id(1) * M + tl.arange(0, M)
    outputs_N = tl.program_id(0) * N + tl.arange(0, N)
    there_M1 = (rows_M < num_rows)[:, None]
    inside_N = outputs_N < num_outputs
    acc_MN = tl.zeros((M, N), tl.float32)
    for start in range(0, I, INPUTS):
        inputs_I = start + tl.arange(0, INPUTS)
        inside_I = (inputs_I < I)[None, :]
        x_at_MI = x_ptr + rows_M.to(tl.int64)[:, None] * x_stride + inputs_I[None, :]
        x_MI = tl.load(x_at_MI, mask=there_M1 & inside_I, other=0.0)
        codes_at_NI = codes_ptr + outputs_N.to(tl.int64)[:, None] * I + inputs_I[None, :]
        codes_NI = tl.load(codes_at_NI, mask=inside_N[:, None] & inside_I, other=0.0)
        acc_MN = dot(x_MI, tl.trans(widen(codes_NI, x_MI)), acc_MN)
    scale_N = tl.load(scales_ptr + outputs_N, mask=inside_N, other=0.0)
    out_at_MN = out_ptr + rows_M.to(tl.int64)[:, None] * num_outputs + outputs_N[None, :]
    tl.store(out_at_MN, (acc_MN * scale_N[None, :]).to(out_ptr.dtype.element_ty), mask=there_M1 & inside_N[None, :])


def tile_shape(rows: int) -> tuple[int, int, int]:
    """Rows and outputs of a tile, and its warps: few outputs while rows are few, so that all multiprocessors read."""
    if rows <= 16:
        return 16, 32, 4
    if rows <= 64:
        return 64, 64, 4
    return 128, 64, 8


def int4_linear(x_RI: Tensor, weight: Int4Weight) -> Tensor:
    """`x Wᵀ`, `[R, O]`. Oracle: `int4_oracle`."""
    assert x_RI.stride(1) == 1
    (rows, inputs), outputs = x_RI.shape, len(weight.codes_OH)
    m, n, warps = tile_shape(rows)
    out_RO = torch.empty((rows, outputs), dtype=x_RI.dtype, device=x_RI.device)
    _int4_linear[(-(-outputs // n), -(-rows // m))](
        x_RI,
        weight.codes_OH,
        weight.scales_OQ,
        weight.zeros_OQ,
        out_RO,
        rows,
        outputs,
        x_RI.stride(0),
        I=inputs,
        M=m,
        N=n,
        num_warps=warps,
        num_stages=3,
    )
    return out_RO


def fp8_linear(x_RI: Tensor, weight: Fp8Weight) -> Tensor:
    """`x Wᵀ`, `[R, O]`; needs sm_89. Oracle: the codes times the scales."""
    assert x_RI.stride(1) == 1
    (rows, inputs), outputs = x_RI.shape, len(weight.codes_OI)
    m, n, warps = tile_shape(rows)
    out_RO = torch.empty((rows, outputs), dtype=x_RI.dtype, device=x_RI.device)
    _fp8_linear[(-(-outputs // n), -(-rows // m))](
        x_RI,
        weight.codes_OI,
        weight.scales_O,
        out_RO,
        rows,
        outputs,
        x_RI.stride(0),
        I=inputs,
        M=m,
        N=n,
        INPUTS=128 if rows <= 64 else 64,
        num_warps=warps,
        num_stages=3,
    )
    return out_RO
