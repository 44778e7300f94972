"""Every GPU kernel compiles for sm_80 and sm_90 without a GPU, spills nothing, and leaves room for its neighbours."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).parents[4]
REGISTERS: Final = 65536
"""Of a multiprocessor, on both."""
SHARED_BYTES: Final = {80: 164 << 10, 90: 228 << 10}
"""Likewise; a program takes 1 KB more than it asks for.

Source: CUDA C++ Programming Guide, "Compute Capabilities"."""

PROGRAMS: Final = {
    "_prefill": 1,
    "_prefix": 1,
    "_decode": 2,
    "_int4_linear": 1,
    "_fp8_linear": 1,
    "_grouped": 2,
    "_sample": 2,
}
"""How many programs of a kernel a multiprocessor must hold at once."""
PROGRAMS_OF_OTHERS: Final = 4

NEEDS_SM_89: Final = ("fp8",)
"""Cases that sm_80 cannot compile: it does not convert to or from e4m3."""


def compile_cases(capability: int, *cases: str) -> list[dict[str, Any]]:
    """In a process of its own: here, Triton interprets."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "runtime")))
    command = [sys.executable, "-m", "tests.kvasir_runtime.kernels.gpu.ahead_of_time", str(capability), *cases]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    reports: list[dict[str, Any]] = json.loads(done.stdout)
    return reports


def check(reports: list[dict[str, Any]], capability: int) -> None:
    assert reports
    for report in reports:
        by_registers = REGISTERS // (report["registers"] * 32 * report["warps"])
        by_shared = SHARED_BYTES[capability] // (report["shared"] + 1024)
        assert report["spilled"] == 0, report
        assert min(by_registers, by_shared) >= PROGRAMS.get(report["kernel"], PROGRAMS_OF_OTHERS), report


def test_the_smallest_kernel_compiles() -> None:
    """What the machinery below needs is there: the compiler, the assembler, the reader of compiled code."""
    check(compile_cases(90, "rope"), 90)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_all_kernels_compile(capability: int) -> None:
    """For shapes of real models, every format of the cache, and every kernel that production launches."""
    names = compile_names()
    if capability < 89:
        names = [name for name in names if not any(needs in name for needs in NEEDS_SM_89)]
    reports = compile_cases(capability, *names)
    assert {report["case"] for report in reports} == set(names)
    check(reports, capability)


def compile_names() -> list[str]:
    from tests.kvasir_runtime.kernels.gpu.ahead_of_time import CASES

    return list(CASES)
