"""The sampling kernel against sorting: every cut alone and together, ties, masked tokens, greedy rows."""

import pytest
import torch

from kvasir_runtime.kernels.gpu.sampling import sample, sample_oracle
from tests.kvasir_runtime.kernels.gpu.device import DEVICE

RANDOM = [0.3, 0.999999]

CUTS = {
    "all": [1.0, 0, 1.0, 0.0],
    "greedy": [0.0, 0, 1.0, 0.0],
    "top-k": [0.7, 3, 1.0, 0.0],
    "top-p": [1.3, 0, 0.9, 0.0],
    "min-p": [1.0, 0, 1.0, 0.2],
    "everything": [0.8, 50, 0.8, 0.01],
    "only-the-likeliest": [1.0, 1, 1.0, 0.0],
    "nearly-nothing": [1.0, 0, 1e-6, 0.0],
    "top-k-of-all": [1.0, 100_000, 0.99, 0.0],
}


def check(logits_RV: torch.Tensor, settings: list[list[float]]) -> None:
    tokens = sample(logits_RV.to(DEVICE), torch.tensor(settings).T.contiguous().to(DEVICE)).tolist()
    assert tokens == [sample_oracle(row, each) for row, each in zip(logits_RV, settings, strict=True)]


@pytest.mark.parametrize("vocab", [500, pytest.param(9000, marks=pytest.mark.slow)])
def test_the_tokens_of_sorting(vocab: int) -> None:
    """All cuts in one batch, each with several random numbers; rows are a slice of wider ones."""
    torch.manual_seed(0)
    settings = [[*cut, random] for cut in CUTS.values() for random in RANDOM]
    logits = torch.randn(len(settings), vocab + 4)[:, :vocab] * 3
    check(logits, settings)


def test_ties_are_kept_in_the_order_of_the_ids() -> None:
    """A flat distribution of 100 tokens: top-k 7 are the first 7, top-p 0.25 of these the first 2."""
    logits = torch.zeros(1, 100).repeat(3, 1)
    check(logits, [[1.0, 7, 1.0, 0.0, random] for random in (0.0, 0.5, 0.999)])
    check(logits, [[1.0, 7, 0.25, 0.0, random] for random in (0.0, 0.6, 0.999)])


def test_masked_tokens_are_never_drawn() -> None:
    """What a grammar forbids has no chance, even where top-k asks for more than is left."""
    logits = torch.full((4, 60), float("-inf"))
    logits[:, [5, 40]] = torch.tensor([1.0, 1.5])
    check(
        logits, [[1.0, 10, 1.0, 0.0, 0.0], [1.0, 0, 0.99, 0.0, 0.99], [0.0, 0, 1.0, 0.0, 0.5], [2.0, 5, 0.9, 0.0, 0.9]]
    )
