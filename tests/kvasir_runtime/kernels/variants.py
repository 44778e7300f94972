"""The CPU kernels compiled for every instruction set that this machine has."""

import functools
import platform
from typing import Any

import pytest
import torch

from kvasir_runtime.kernels.cpu import build
from kvasir_runtime.kernels.cpu.library import Library, usable_variants

NAMES = usable_variants()


def params() -> list[Any]:
    """Names for a fixture's `params`: the best one always, the others, which must be compiled first, as slow tests."""
    assert NAMES, f"no kernels for {platform.machine()}"
    return [NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])]


@functools.cache
def library(name: str) -> Library:
    torch.set_num_threads(2)
    file = build.cache_folder() / build.library_name(name, build.VARIANTS[platform.machine()][name])
    return Library(file if file.is_file() else build.build(name, build.cache_folder()))
