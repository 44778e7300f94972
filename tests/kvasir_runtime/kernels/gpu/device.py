"""Where the GPU kernels are tested: compiled on a GPU where there is one, else interpreted on the CPU."""

from typing import Any, Final

import torch

from kvasir_runtime.kernels.gpu.numerics import INTERPRETED

DEVICE: Final = torch.device("cpu" if INTERPRETED.value else "cuda")

TOLERANCE: Final[dict[torch.dtype, Any]] = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 1e-2},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
}
