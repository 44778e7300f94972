"""The kernel against its oracle: ranks, groups, parts, sizes that fill no vector, strided rows."""

from typing import Any

import numpy as np
import pytest
import torch

from kvasir_runtime.lora.batch import LoraBatch, group_rows
from kvasir_runtime.lora.image import LANES, STORED_TYPES, Matrices, fill_panels, panel_shape
from kvasir_runtime.lora.kernels import CpuLora, LoraSlots, TorchLora
from tests.kvasir_runtime.kernels import variants

TOLERANCE: dict[torch.dtype, Any] = {
    torch.float32: {"rtol": 1e-4, "atol": 1e-4},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 6e-2},
}


@pytest.fixture(params=variants.params())
def kernel(request: pytest.FixtureRequest) -> CpuLora:
    torch.set_num_threads(2)
    return CpuLora(variants.library(request.param))


def matrices(rank: int, inputs: int, outputs: int, dtype: torch.dtype, seed: int) -> Matrices:
    """Random ones, laid out as an image has them."""
    source, name = np.random.default_rng(seed), str(dtype).removeprefix("torch.")
    padded = -(-rank // LANES) * LANES
    a, b = source.standard_normal((rank, inputs), np.float32), source.standard_normal((outputs, rank), np.float32)
    shapes = panel_shape(padded, inputs, name), panel_shape(outputs, padded, name)
    panels = [np.zeros(shape, dtype=STORED_TYPES[name]) for shape in shapes]
    fill_panels(panels[0], a / inputs**0.5)
    fill_panels(panels[1], b / rank**0.5)
    return Matrices(*panels)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("inputs", "outputs", "ranks"),
    [
        (64, [32], [[16], [8], [40]]),
        (67, [50, 7, 7], [[16, 0, 16], [1, 2, 3], [0, 256, 0]]),
        (96, [1000], [[0], [0], [5]]),
    ],
)
@pytest.mark.parametrize("rows", [1, 7, 16, 150])
def test_kernel(
    kernel: CpuLora, rows: int, inputs: int, outputs: list[int], ranks: list[list[int]], dtype: torch.dtype
) -> None:
    """Three adapters, some of which leave out a part, and rows without any, in any order."""
    torch.manual_seed(rows)
    slots = LoraSlots(outputs, 4)
    for slot, of_parts in enumerate(ranks):
        slots.put(slot, [
            matrices(rank, inputs, size, dtype, seed=slot) if rank else None
            for rank, size in zip(of_parts, outputs, strict=True)
        ])  # fmt: skip
    batch = group_rows(torch.randint(-1, 3, (rows,)).numpy())
    x = torch.randn(rows, inputs + 5).to(dtype)[:, :inputs]
    out = torch.randn(rows, sum(outputs)).to(dtype)
    if batch is None:
        batch = LoraBatch(*(np.array(v, dtype=np.int32) for v in ([0], [0, 1], [1])))
    want = out.clone()
    TorchLora()(x, want, batch, slots)
    kernel(x, out, batch, slots)
    torch.testing.assert_close(out, want, **TOLERANCE[dtype])


def test_a_row_does_not_depend_on_its_neighbours(kernel: CpuLora) -> None:
    """Alone and in a batch within rounding: sums are of the same numbers, in groups of another size."""
    slots = LoraSlots([48], 1)
    slots.put(0, [matrices(16, 64, 48, torch.float32, seed=0)])
    x = torch.randn(11, 64)
    together = torch.zeros(11, 48)
    kernel(x, together, group_rows(np.zeros(11, dtype=np.int64)), slots)  # type: ignore[arg-type]
    for row in range(11):
        alone = torch.zeros(1, 48)
        kernel(x[row : row + 1], alone, group_rows(np.zeros(1, dtype=np.int64)), slots)  # type: ignore[arg-type]
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-6)


def test_rows_are_grouped_by_slot() -> None:
    """Sorted by slot, each group in the order of its rows; rows without an adapter are left out."""
    batch = group_rows(np.array([2, -1, 0, 2, 0, -1, 1]))
    assert batch is not None
    assert batch.rows_N.tolist() == [2, 4, 6, 0, 3]
    assert (batch.starts_G1.tolist(), batch.slots_G.tolist()) == ([0, 2, 3, 5], [0, 1, 2])
    assert group_rows(np.array([-1, -1])) is None
