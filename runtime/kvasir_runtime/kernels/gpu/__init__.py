"""Triton kernels for NVIDIA GPUs, sm_80 and later: one family a file, its oracle in plain torch beside it.

They run compiled on a GPU, or on CPU tensors in Triton's interpreter where TRITON_INTERPRET=1 was set before Triton
was first imported. Tile sizes are chosen by reasoning, not by measurement.

Shape suffixes: as in `attention.backend`; further ones are explained at the top of each file.
"""

import os

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # fused multiply-add; Triton 3.9 warns while nobody says so
