"""What all kernels share: exact dots in the interpreter, fp8 rounding, tanh without a device library, sizes."""

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED: Final = tl.constexpr(bool(triton.knobs.runtime.interpret))
"""Whether kernels run in Triton's interpreter. It multiplies bfloat16 as integers and truncates to fp8: see below."""

FP8_MAX: Final = tl.constexpr(448.0)
LOG2E: Final = 1.4426950408889634


def usable(device: torch.device | str) -> bool:
    """Whether kernels can run on tensors of this device in this process."""
    return torch.device(device).type == "cuda" or bool(INTERPRETED.value)


def multiprocessors(device: torch.device) -> int:
    """How many of them to fill; the interpreter has one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def power_of_two(number: int, least: int = 1) -> int:
    """The smallest power of two that is at least both."""
    return max(least, 1 << (max(1, number) - 1).bit_length())


def bias_or_none(bias: Tensor | None, weight: Tensor) -> Tensor:
    """A pointer is always passed; without a bias it is the weight's, which nothing reads through it."""
    return weight if bias is None else bias


@triton.jit
def dot(a, b, acc):
    """`a @ b + acc` in float32; float32 operands without TF32."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def widen(codes, like):
    """int8 or fp8 codes as numbers in the dtype of `like`, exactly."""
    if INTERPRETED:  # which takes integers for the bits of a bfloat16
        codes = codes.to(tl.float32)
    return codes.to(like.dtype)


@triton.jit
def tanh(x):
    """Within 1e-6 of tanh, for any x."""
    shrunk = tl.exp(-2.0 * tl.abs(x))
    magnitude = (1.0 - shrunk) / (1.0 + shrunk)
    return tl.where(x < 0, -magnitude, magnitude)


@triton.jit
def sigmoid(x):
    """For any x: the exponential is never of a positive number."""
    shrunk = tl.exp(-tl.abs(x))
    return tl.where(x < 0, shrunk, 1.0) / (1.0 + shrunk)


@triton.jit
def to_fp8(x):
    """The nearest e4m3 number to each float32, at most 448 in magnitude; even on a tie."""
    x = tl.minimum(tl.maximum(x, -FP8_MAX), FP8_MAX)
    if INTERPRETED:  # which would truncate: round to a multiple of the last place first
        exponent = tl.maximum((x.to(tl.int32, bitcast=True) >> 23) & 0xFF, 121)
        shift = ((exponent - 3) << 23).to(tl.float32, bitcast=True) * 12582912.0  # 1.5 * 2^23 places
        x = (x + shift) - shift
    return x.to(tl.float8e4nv)


@triton.jit
def to_int8(x):
    """The nearest integer to each float32, at most 127 in magnitude."""
    return tl.floor(tl.minimum(tl.maximum(x, -127.0), 127.0) + 0.5).to(tl.int8)
