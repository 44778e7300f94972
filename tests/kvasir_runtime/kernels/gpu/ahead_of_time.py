"""Compiles every GPU kernel as production calls it, for a given GPU, on a machine without one.

    python -m tests.kvasir_runtime.kernels.gpu.ahead_of_time 90 decode prefill

The kernels' own functions are called with tensors on the CPU, in a process without TRITON_INTERPRET; instead of being
launched, each kernel is compiled, so that types, constants, alignment, warps and stages are the real ones. Prints a
JSON list of what each takes, as the compiled code says.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from kvasir_runtime.attention.metadata import AttentionSpec, Sequences
from kvasir_runtime.kernels.gpu.activation import gate_and_mul
from kvasir_runtime.kernels.gpu.cascade import SharedPrefixes, begins_of, cascade_decode
from kvasir_runtime.kernels.gpu.decode_attention import decode_attention, plan_splits
from kvasir_runtime.kernels.gpu.experts import ExpertRows, combine_experts, expand_to_experts
from kvasir_runtime.kernels.gpu.lora import LoraGroups, LoraStack, add_adapters, output_blocks
from kvasir_runtime.kernels.gpu.low_bit_linear import Fp8Weight, Int4Weight, fp8_linear, int4_linear
from kvasir_runtime.kernels.gpu.norm import rms_norm
from kvasir_runtime.kernels.gpu.paged_kv import cache_width
from kvasir_runtime.kernels.gpu.prefill_attention import prefill_attention
from kvasir_runtime.kernels.gpu.rope_kv import rope_and_write
from kvasir_runtime.kernels.gpu.sampling import sample

CUOBJDUMP: Final = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
BF16: Final = torch.bfloat16
ROWS: Final = 64


class CompileOnly:
    """Stands in for the CUDA driver: knows what to compile for, and has no device."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0


def attention_inputs(spec: AttentionSpec, kv_dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, Sequences]:
    q = torch.zeros(ROWS, spec.num_heads, spec.head_dim, dtype=BF16)
    cache = torch.zeros(2, 4, spec.num_kv_heads, 16, cache_width(spec.head_dim, kv_dtype), dtype=kv_dtype)
    return q, cache, Sequences(torch.zeros(ROWS, 64, dtype=torch.int32), torch.ones(ROWS, dtype=torch.int32))


def decode(spec: AttentionSpec, kv_dtype: torch.dtype = BF16) -> None:
    q, cache, sequences = attention_inputs(spec, kv_dtype)
    decode_attention(q, cache, sequences, spec, plan_splits(sequences, spec))


def prefill(spec: AttentionSpec, kv_dtype: torch.dtype = BF16) -> None:
    q, cache, sequences = attention_inputs(spec, kv_dtype)
    prefill_attention(q, cache, sequences, torch.arange(ROWS + 1, dtype=torch.int32), spec)


def rope(spec: AttentionSpec, kv_dtype: torch.dtype = BF16) -> None:
    q, cache, _ = attention_inputs(spec, kv_dtype)
    kv = torch.zeros(ROWS, spec.num_kv_heads, spec.head_dim, dtype=BF16)
    slots = torch.zeros(ROWS, dtype=torch.int64)
    rope_and_write(q, kv, kv, torch.zeros(64, spec.head_dim), cache, slots, slots)


def lora(rank: int) -> None:
    inputs, outputs = 4096, [4096, 1024, 1024]
    ones = torch.ones(8, dtype=torch.int32)
    blocks = [torch.tensor(column, dtype=torch.int32) for column in output_blocks([0, 4096, 5120, 6144])]
    a, b = torch.zeros(8, len(outputs), rank, inputs, dtype=BF16), torch.zeros(8, sum(outputs), rank, dtype=BF16)
    groups = LoraGroups(torch.ones(ROWS, dtype=torch.int32), torch.ones(9, dtype=torch.int32), ones)
    x, out = torch.zeros(ROWS, inputs, dtype=BF16), torch.zeros(ROWS, sum(outputs), dtype=BF16)
    add_adapters(x, out, groups, LoraStack(a, b, *blocks))


def cascade(spec: AttentionSpec, kv_dtype: torch.dtype = BF16) -> None:
    q, cache, sequences = attention_inputs(spec, kv_dtype)
    prefixes = SharedPrefixes(torch.tensor([0, ROWS], dtype=torch.int32), torch.zeros(1, dtype=torch.int32))
    plan = plan_splits(sequences, spec, begins_N=begins_of(prefixes))
    cascade_decode(q, cache, sequences, spec, prefixes, plan)


def int4(rows: int) -> None:
    codes, scales = torch.zeros(4096, 2048, dtype=torch.uint8), torch.zeros(4096, 32, dtype=BF16)
    weight = Int4Weight(codes, scales, torch.zeros(4096, 32, dtype=torch.int8))
    int4_linear(torch.zeros(rows, 4096, dtype=BF16), weight)


def fp8(rows: int) -> None:
    weight = Fp8Weight(torch.zeros(4096, 4096, dtype=torch.float8_e4m3fn), torch.zeros(4096))
    fp8_linear(torch.zeros(rows, 4096, dtype=BF16), weight)


def experts(tokens: int) -> None:
    up, down = torch.zeros(8, 256, 512, dtype=BF16), torch.zeros(8, 512, 256, dtype=BF16)
    rows = ExpertRows(torch.zeros(2 * tokens, dtype=torch.int32), torch.zeros(9, dtype=torch.int32), 2)
    expand_to_experts(torch.zeros(tokens, 512, dtype=BF16), up, rows)
    factors = torch.zeros(tokens, 2, dtype=BF16)
    combine_experts(torch.zeros(2 * tokens, 256, dtype=BF16), down, rows, factors)


def small_operations() -> None:
    x, residual, weight = torch.zeros(ROWS, 4096, dtype=BF16), torch.zeros(ROWS, 4096, dtype=BF16), torch.zeros(4096)
    rms_norm(x, weight, 1e-6)
    rms_norm(x, weight, 1e-6, residual)
    rms_norm(torch.zeros(ROWS, 32, 128, dtype=BF16), torch.zeros(128), 1e-6)
    gate_and_mul(torch.zeros(ROWS, 28672, dtype=BF16), gelu=False)
    gate_and_mul(torch.zeros(ROWS, 28672, dtype=BF16), gelu=True)


LLAMA_8B: Final = AttentionSpec(32, 8, 128, 0.09)
QWEN_HALF_B: Final = AttentionSpec(14, 2, 64, 0.125)
GEMMA2_9B: Final = AttentionSpec(16, 8, 256, 0.0625, window=4096, softcap=50.0)

CASES: Final[dict[str, Callable[[], Any]]] = {
    "decode": lambda: decode(LLAMA_8B),
    "prefill": lambda: prefill(LLAMA_8B),
    "rope": lambda: rope(LLAMA_8B),
    "small": small_operations,
    "lora-16": lambda: lora(16),
    "lora-64": lambda: lora(64),
    "sampling": lambda: sample(torch.zeros(ROWS, 32000), torch.zeros(5, ROWS)),
    "cascade": lambda: cascade(LLAMA_8B),
    "int4-decode": lambda: int4(16),
    "int4-prefill": lambda: int4(256),
    "experts-decode": lambda: experts(8),
    "experts-prefill": lambda: experts(256),
    "fp8-linear-decode": lambda: fp8(16),
    "fp8-linear-prefill": lambda: fp8(256),
    "decode-64": lambda: decode(QWEN_HALF_B),
    "prefill-64": lambda: prefill(QWEN_HALF_B),
    "decode-256-window-softcap": lambda: decode(GEMMA2_9B),
    "prefill-256-window-softcap": lambda: prefill(GEMMA2_9B),
    "decode-int8": lambda: decode(LLAMA_8B, torch.int8),
    "prefill-int8": lambda: prefill(LLAMA_8B, torch.int8),
    "rope-int8": lambda: rope(LLAMA_8B, torch.int8),
    "decode-fp8": lambda: decode(LLAMA_8B, torch.float8_e4m3fn),
    "prefill-fp8": lambda: prefill(LLAMA_8B, torch.float8_e4m3fn),
    "rope-fp8": lambda: rope(LLAMA_8B, torch.float8_e4m3fn),
}


def compile_case(name: str, capability: int) -> list[dict[str, Any]]:
    """What each kernel of a case takes: registers and bytes of stack (spills) a thread, bytes of shared memory."""
    compiled: list[Any] = []
    original = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        compiled.append(original(self, *args, grid=grid, warmup=True, **options))
        return compiled[-1]

    JITFunction.run = compile_only
    driver.set_active(CompileOnly(capability))
    try:
        CASES[name]()
    finally:
        JITFunction.run = original
    return [{"case": name, **resources(kernel)} for kernel in compiled]


def resources(kernel: Any) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    metadata = kernel.metadata
    return {
        "kernel": metadata.name,
        "registers": found["REG"],
        "spilled": found["STACK"] + found["LOCAL"],
        "shared": metadata.shared,
        "warps": metadata.num_warps,
    }


if __name__ == "__main__":
    names = sys.argv[2:] or list(CASES)
    print(json.dumps([report for name in names for report in compile_case(name, int(sys.argv[1]))]))
