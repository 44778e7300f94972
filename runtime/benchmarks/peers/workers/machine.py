"""The machine's own bounds: the rate of bfloat16 matrix products and the bandwidth of reading DRAM."""

import argparse
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it

from benchmarks.peers.shape import LLAMA_300M, LlamaShape
from benchmarks.peers.workers.measure import say

SOURCE: Final = Path(__file__).parent.parent / "native" / "read_bandwidth.c"
BATCHES: Final = (1024, 2048, 4096)
REPEATS: Final = 5
BUFFER_MIB: Final = 1024
PASSES: Final = 60


def gemm_flops(shape: LlamaShape, tokens: int) -> float:
    """Floating-point operations per second of one layer's four products on `tokens` rows."""
    seconds = sum(_product_s(rows, columns, tokens) for rows, columns in shape.projections.values())
    return 2 * tokens * shape.layer_parameters / seconds


def _product_s(rows: int, columns: int, tokens: int) -> float:
    """Seconds of one product, with weights laid out by oneDNN beforehand or by torch as it goes: what is faster."""
    x_TI = torch.randn(tokens, columns).to(torch.bfloat16)
    weight_OI = torch.randn(rows, columns).to(torch.bfloat16)
    times = [_usual_s(lambda: F.linear(x_TI, weight_OI))]
    if torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI, tokens)  # noqa: SLF001 - torch's only name
        times.append(_usual_s(lambda: torch.ops.mkldnn._linear_pointwise(x_TI, packed, None, "none", [], "")))  # noqa: SLF001
    return min(times)


def _usual_s(call: Callable[[], object]) -> float:
    call()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def read_bytes(threads: int) -> float:
    """Bytes per second that `threads` threads read from DRAM: the median of many passes over one large buffer."""
    rates = [_torch_read_bytes()]
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler:
        rates.append(_native_read_bytes(compiler, threads))
    return max(rates)


def _native_read_bytes(compiler: str, threads: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "read_bandwidth")
        flags = ["-O3", "-march=native", "-pthread"]
        subprocess.run([compiler, *flags, "-o", program, str(SOURCE)], check=True)
        command = [program, str(threads), str(BUFFER_MIB), str(PASSES)]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _torch_read_bytes() -> float:
    buffer = torch.ones(BUFFER_MIB << 18, dtype=torch.float32)
    return buffer.nbytes / _usual_s(buffer.sum)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure this machine's matrix rate and read bandwidth.")
    parser.add_argument("result", type=Path, help="JSON file to write")
    parser.add_argument("--threads", type=int, required=True, help="threads to compute and to read with")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    say("machine: matrix products")
    by_tokens = {str(tokens): gemm_flops(LLAMA_300M, tokens) for tokens in BATCHES}
    say("machine: memory")
    rates = {"gemm_flops": max(by_tokens.values()), "read_bytes": read_bytes(arguments.threads)}
    arguments.result.write_text(json.dumps({**rates, "gemm_flops_by_tokens": by_tokens}), encoding="utf-8")


if __name__ == "__main__":
    main()
