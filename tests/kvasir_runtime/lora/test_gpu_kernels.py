"""The GPU's kernels against the oracle: ranks, groups, parts, sizes that fill no tile, slots that change."""

from typing import Any

import numpy as np
import pytest
import torch

from kvasir_runtime.lora.batch import LoraBatch, group_rows
from kvasir_runtime.lora.gpu import TritonLora
from kvasir_runtime.lora.image import LANES, STORED_TYPES, Matrices, fill_panels, panel_shape
from kvasir_runtime.lora.kernels import LoraSlots, TorchLora
from kvasir_runtime.sampling_params import SamplingParams
from kvasir_runtime.worker.device import INTERPRETER
from tests.kvasir_runtime.kernels.gpu.device import DEVICE
from tests.kvasir_runtime.lora.adapters import LEGAL, PIRATE, TINY_LLAMA, AdapterEngine

TOLERANCE: dict[torch.dtype, Any] = {
    torch.float32: {"rtol": 1e-4, "atol": 1e-4},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 6e-2},
}


def matrices(rank: int, inputs: int, outputs: int, dtype: torch.dtype, seed: int) -> Matrices:
    """Random ones, laid out as an image has them."""
    source, name = np.random.default_rng(seed), str(dtype).removeprefix("torch.")
    padded = -(-rank // LANES) * LANES
    a, b = source.standard_normal((rank, inputs), np.float32), source.standard_normal((outputs, rank), np.float32)
    panels = [
        np.zeros(shape, dtype=STORED_TYPES[name])
        for shape in (panel_shape(padded, inputs, name), panel_shape(outputs, padded, name))
    ]
    fill_panels(panels[0], a / inputs**0.5)
    fill_panels(panels[1], b / rank**0.5)
    return Matrices(*panels)


def fill(slots: LoraSlots, slot: int, ranks: list[int], inputs: int, outputs: list[int], dtype: torch.dtype) -> None:
    slots.put(
        slot,
        [
            matrices(rank, inputs, size, dtype, seed=slot) if rank else None
            for rank, size in zip(ranks, outputs, strict=True)
        ],
    )


def check(kernel: TritonLora, slots: LoraSlots, batch: LoraBatch, x: torch.Tensor) -> None:
    torch.manual_seed(1)
    out = torch.randn(len(x), int(slots.offsets[-1])).to(x.dtype)
    want, got = out.clone(), out.to(DEVICE)
    TorchLora()(x, want, batch, slots)
    kernel(x.to(DEVICE), got, batch, slots)
    torch.testing.assert_close(got.cpu(), want, **TOLERANCE[x.dtype])


def batch_of(slots: list[int]) -> LoraBatch:
    batch = group_rows(np.array(slots))
    assert batch is not None
    return batch


@pytest.mark.parametrize(
    ("inputs", "outputs", "ranks", "dtype"),
    [
        pytest.param(67, [50, 7, 7], [[16, 0, 16], [1, 2, 3], [0, 20, 0]], torch.float32, id="q-k-v"),
        pytest.param(96, [300], [[0], [8], [5]], torch.bfloat16, id="several-blocks"),
        pytest.param(130, [140, 20], [[256, 0], [64, 64], [0, 8]], torch.float32, id="large", marks=pytest.mark.slow),
    ],
)
def test_rows_of_all_adapters_at_once(
    inputs: int, outputs: list[int], ranks: list[list[int]], dtype: torch.dtype
) -> None:
    """Three adapters, some of which leave out a part, and rows without any, in any order; x is a slice."""
    torch.manual_seed(0)
    slots = LoraSlots(outputs, 4)
    for slot, of_parts in enumerate(ranks):
        fill(slots, slot, of_parts, inputs, outputs, dtype)
    chosen = [2, -1, 0, 1, 1, *[0] * 18, -1, 2]
    x = torch.randn(len(chosen), inputs + 5).to(dtype)[:, :inputs]
    check(TritonLora(DEVICE), slots, batch_of(chosen), x)


def test_slots_change_between_steps() -> None:
    """A slot is taken by another adapter, then by one of a larger rank, then left empty."""
    torch.manual_seed(0)
    slots, kernel, x = LoraSlots([40], 2), TritonLora(DEVICE), torch.randn(3, 64)
    fill(slots, 1, [4], 64, [40], torch.float32)
    for slot, rank in ((0, 16), (0, 20), (1, 17)):
        fill(slots, slot, [rank], 64, [40], torch.float32)
        check(kernel, slots, batch_of([0, 1, 0]), x)
    slots.put(0, [None])
    check(kernel, slots, batch_of([0, 1, 0]), x)


@pytest.mark.slow
def test_greedy_tokens_with_adapters_are_those_of_the_cpu_path() -> None:
    """Two adapters and the model itself in one batch."""
    requests = [(name, [1, 50, 60, number]) for number, name in enumerate(("pirate", None, "legal"))]
    sampling = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True)
    tokens = []
    for device in ("cpu", "cuda" if DEVICE.type == "cuda" else INTERPRETER):
        engine = AdapterEngine(TINY_LLAMA, device=device, max_rank=16)
        engine.load("pirate", PIRATE)
        engine.load("legal", LEGAL)
        tokens.append([one.token_ids for one in engine.generate(requests, sampling)])
    assert tokens[1] == tokens[0]
    assert tokens[0][0] != tokens[0][2]
