"""Sampling: each rule against a plain definition, distributions by chi-square, and independence of the batch."""

from array import array
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kvasir_runtime.core.scheduler_output import Seating
from kvasir_runtime.sampling_params import SamplingParams
from kvasir_runtime.worker import penalties
from kvasir_runtime.worker.distributions import Dice, draw_from_nucleus, drop_unlikely, uniform
from kvasir_runtime.worker.sampler import Sampler

VOCAB = 50
MAX_MODEL_LEN = 64


class SeatedSampler(Sampler):
    """A sampler with a table of tokens of its own, filled as the runner does it."""

    def __init__(self, num_seats: int, vocab_size: int) -> None:
        self.table = np.zeros((num_seats, MAX_MODEL_LEN + 1), dtype=np.int32)
        super().__init__(num_seats, vocab_size, self.table)

    def seat(self, seating: Seating) -> None:
        self.table[seating.seat, : len(seating.token_ids)] = seating.token_ids
        super().seat(seating)


def seating(seat: int = 0, prompt: list[int] | None = None, output: list[int] | None = None, **params: Any) -> Seating:
    seed = params.pop("request_seed", 1234)
    prompt, output = [1, 2, 3] if prompt is None else prompt, output or []
    return Seating(seat, array("i", prompt + output), len(prompt), 0, SamplingParams(**params), seed, frozenset({7}))


def sample(sampler: SeatedSampler, logits: Tensor, seats: list[int], positions: list[int]) -> list[int]:
    sampled = sampler.sample(logits.clone(), np.array(seats), np.array(positions))
    tokens: list[int] = sampled.tokens_R.tolist()
    inside = np.array(positions) <= MAX_MODEL_LEN
    sampler.table[np.array(seats)[inside], np.array(positions)[inside]] = np.array(tokens)[inside]
    return tokens


def adjust(sampler: SeatedSampler, logits: Tensor, seats: list[int], positions: list[int]) -> Tensor:
    """The logits as rows on `seats` are sampled from."""
    adjusted = logits.expand(len(seats), -1).clone()
    sampler._adjust(adjusted, sampler._compose(np.array(seats)), np.array(positions))
    return adjusted


def draws(logits: Tensor, count: int, **params: Any) -> Tensor:
    """How often each token is drawn at `count` positions of one request."""
    sampler = SeatedSampler(1, len(logits))
    sampler.seat(seating(**params))
    counts = torch.zeros(len(logits), dtype=torch.int64)
    for start in range(0, count, 1000):
        rows = min(1000, count - start)
        tokens = sample(sampler, logits.expand(rows, -1), [0] * rows, list(range(start, start + rows)))
        counts += torch.bincount(torch.tensor(tokens), minlength=len(logits))
    return counts


def assert_distribution(counts_V: Tensor, probs_V: Tensor) -> None:
    """Chi-square goodness of fit at a significance of 1e-4: one sound sampler in 10,000 would fail; seeds are fixed."""
    assert not counts_V[probs_V == 0].any(), "a token without probability was drawn"
    expected = probs_V[probs_V > 0] * counts_V.sum()
    statistic = ((counts_V[probs_V > 0] - expected) ** 2 / expected).sum().item()
    freedom = len(expected) - 1
    # Wilson and Hilferty: (X / k)^(1/3) is nearly normal; 3.719 is the normal's 1 - 1e-4 quantile.
    limit = freedom * (1 - 2 / (9 * freedom) + 3.719 * (2 / (9 * freedom)) ** 0.5) ** 3
    assert statistic < limit


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(3)) * 1.5


def reference(
    logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Tensor:
    """The distribution by definition, one rule after the other."""
    probs = (logits / temperature).softmax(-1).double()
    order = probs.argsort(descending=True)
    keep = torch.ones(len(probs), dtype=torch.bool)
    if top_k:
        keep[order[top_k:]] = False
    if top_p < 1:
        mass, total = 0.0, probs[keep].sum()
        for token in order.tolist():
            if keep[token]:
                keep[token] = bool(mass < top_p * total)
                mass += probs[token].item()
    keep &= probs >= min_p * probs.max()
    probs = probs * keep
    return probs / probs.sum()


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 2.5},
        {"top_k": 5},
        {"top_p": 0.7},
        {"min_p": 0.1},
        {"top_k": 20, "top_p": 0.9, "temperature": 1.3, "min_p": 0.02},
    ],
    ids=str,
)
def test_distribution(logits: Tensor, params: dict[str, Any]) -> None:
    """20,000 draws follow the distribution that the rules define, and nothing outside it is drawn."""
    assert_distribution(draws(logits, 20_000, **params), reference(logits, **params))


def test_a_wrong_distribution_is_noticed(logits: Tensor) -> None:
    """The test above can fail: draws at temperature 1 do not pass for temperature 1.1."""
    with pytest.raises(AssertionError):
        assert_distribution(draws(logits, 20_000), reference(logits, temperature=1.1))


def test_greedy_is_the_likeliest(logits: Tensor) -> None:
    """Temperature 0 takes the maximum, beside rows that are drawn."""
    sampler = SeatedSampler(2, VOCAB)
    sampler.seat(seating(0, temperature=0.0))
    sampler.seat(seating(1))
    tokens = sample(sampler, logits.expand(6, -1), [0, 1, 0, 1, 1, 0], list(range(6)))
    assert [tokens[row] for row in (0, 2, 5)] == [int(logits.argmax())] * 3


def test_tokens_do_not_depend_on_the_batch() -> None:
    """A seeded row gives the same token alone, among others of any kind, and in another order."""
    kinds: list[dict[str, Any]] = [
        {},
        {"top_k": 3},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"temperature": 0.0},
        {"top_k": 9, "top_p": 0.5},
    ]
    sampler = SeatedSampler(len(kinds), VOCAB)
    logits = torch.randn(len(kinds), VOCAB, generator=torch.Generator().manual_seed(0))
    for seat, kind in enumerate(kinds):
        sampler.seat(seating(seat, request_seed=seat, **kind))
    for position in range(20):
        alone = [sample(sampler, logits[seat : seat + 1], [seat], [position])[0] for seat in range(len(kinds))]
        order = list(np.random.default_rng(position).permutation(len(kinds)))
        together = sample(sampler, logits[order], order, [position] * len(kinds))
        assert together == [alone[seat] for seat in order]


def test_other_seeds_and_positions_draw_other_numbers() -> None:
    """Numbers of neighbouring seeds and positions are spread evenly and are not correlated."""
    seeds, positions = np.arange(200, dtype=np.uint64), np.arange(200)
    grid = np.stack([uniform(np.full(200, seed), positions) for seed in seeds])
    assert 0 <= grid.min() < 0.001
    assert 0.999 < grid.max() < 1
    assert abs(grid.mean() - 0.5) < 0.01
    for other in (grid[1:], grid[:, 1:]):
        same = grid[: other.shape[0], : other.shape[1]]
        assert abs(np.corrcoef(same.ravel(), other.ravel())[0, 1]) < 0.02


def test_penalties(logits: Tensor) -> None:
    """Repetition counts prompt and output, presence and frequency the output alone; other rows are untouched."""
    sampler = SeatedSampler(2, VOCAB)
    params: dict[str, Any] = {
        "repetition_penalty": 1.5,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.3,
        "temperature": 0.0,
    }
    sampler.seat(seating(0, prompt=[4, 5], output=[5, 6, 6], **params))
    sampler.seat(seating(1, temperature=0.0))
    adjusted = adjust(sampler, logits, [0, 1], [5, 9])
    expected = logits.clone()
    for token in (4, 5, 6):
        expected[token] = expected[token] / 1.5 if expected[token] > 0 else expected[token] * 1.5
    expected[5] -= 0.4 + 0.3
    expected[6] -= 0.4 + 2 * 0.3
    torch.testing.assert_close(adjusted[0], expected)
    assert torch.equal(adjusted[1], logits)


def test_penalties_of_long_sequences_are_worked_out_in_portions(
    monkeypatch: pytest.MonkeyPatch, logits: Tensor
) -> None:
    """However few tokens are looked up at a time, each row gets its own penalties; so do rows without outputs."""
    sampler = SeatedSampler(4, VOCAB)
    for seat in range(4):
        sampler.seat(
            seating(
                seat,
                prompt=list(range(seat, 20 + seat)),
                output=[seat, 40, 40][: 3 * (seat % 2)],
                repetition_penalty=1.2 + seat,
                presence_penalty=0.5,
                frequency_penalty=0.25 * seat,
            )
        )
    lengths = [20, 23, 20, 23]
    whole = adjust(sampler, logits, [0, 1, 2, 3], lengths)
    for tokens in (1, 23, 50):
        monkeypatch.setattr(penalties, "TOKENS_LOOKED_UP_AT_ONCE", tokens)
        torch.testing.assert_close(adjust(sampler, logits, [0, 1, 2, 3], lengths), whole, rtol=0, atol=0)
        alone = [adjust(sampler, logits, [seat], [lengths[seat]])[0] for seat in (3, 1, 0, 2)]
        assert torch.equal(torch.stack(alone), whole[[3, 1, 0, 2]])
    for seat in (0, 2):  # nothing was said yet: presence and frequency change nothing
        expected = logits.clone()
        prompt = slice(seat, 20 + seat)
        strength = 1.2 + seat
        expected[prompt] = torch.where(logits[prompt] > 0, logits[prompt] / strength, logits[prompt] * strength)
        torch.testing.assert_close(whole[seat], expected)


def test_a_sampled_token_counts_at_once() -> None:
    """With a strong presence penalty greedy sampling never says a token twice."""
    sampler = SeatedSampler(1, 6)
    sampler.seat(seating(prompt=[0], temperature=0.0, presence_penalty=2.0))
    logits = torch.tensor([[0.0, 0.3, 0.6, 0.9, 1.2, 1.5]])
    assert [sample(sampler, logits, [0], [position])[0] for position in range(1, 7)] == [5, 4, 3, 2, 1, 0]


def test_bias_and_min_tokens(logits: Tensor) -> None:
    """A bias of 100 decides; stop tokens cannot come before `min_tokens` outputs."""
    sampler = SeatedSampler(2, VOCAB)
    sampler.seat(seating(0, temperature=0.0, logit_bias={11: 100.0}))
    sampler.seat(seating(1, temperature=0.0, logit_bias={7: 100.0}, min_tokens=2))
    outputs = [sample(sampler, logits.expand(2, -1), [0, 1], [position] * 2) for position in (3, 4, 5)]
    assert [first for first, _ in outputs] == [11, 11, 11]
    assert [second == 7 for _, second in outputs] == [False, False, True]


def test_a_batch_that_changes_takes_each_rows_own_biases() -> None:
    """Biases and forbidden tokens follow their sequences when others join, leave and change places."""
    sampler = SeatedSampler(6, VOCAB)
    for seat in range(6):
        bias = {20 + seat: 50.0, 30 + seat: 40.0} if seat % 2 else {}
        sampler.seat(seating(seat, temperature=0.0, logit_bias=bias, min_tokens=3 * (seat in (1, 2))))
    logits = torch.zeros(VOCAB)
    logits[7] = 45.0  # the stop token: below the biases, above all else
    expected = {0: 7, 1: 21, 2: 0, 3: 23, 4: 7, 5: 25}
    for seats in ([0, 1, 2], [2, 1, 0], [5, 2], [2], [0, 1, 2, 3, 4, 5], [4, 5, 3]):
        tokens = sample(sampler, logits.expand(len(seats), -1), seats, [4] * len(seats))
        assert tokens == [expected[seat] for seat in seats]
    sampler.seat(seating(1, temperature=0.0))
    assert sample(sampler, logits.expand(2, -1), [1, 2], [6, 6]) == [7, 7]


def test_a_seat_forgets_its_last_sequence(logits: Tensor) -> None:
    """Bias, penalties and stop tokens of a finished sequence do not reach the next one on its seat."""
    sampler = SeatedSampler(1, VOCAB)
    sampler.seat(seating(temperature=0.0, logit_bias={11: 100.0}, frequency_penalty=2.0, min_tokens=9))
    sample(sampler, logits[None], [0], [3])
    sampler.seat(seating(temperature=0.0))
    assert sample(sampler, logits[None], [0], [3]) == [int(logits.argmax())]


def test_logprobs_are_of_the_model_and_not_of_the_sampling(logits: Tensor) -> None:
    """Log-probabilities and ranks come from the raw logits; rows that ask for none get none."""
    sampler = SeatedSampler(2, VOCAB)
    sampler.seat(seating(0, temperature=0.0, logit_bias={11: 100.0}, logprobs=3))
    sampler.seat(seating(1, temperature=0.0))
    sampled = sampler.sample(logits.expand(2, -1).clone(), np.array([0, 1]), np.array([3, 3]))
    assert sampled.logprobs is not None
    report, none = sampled.logprobs
    expected = logits.log_softmax(-1)
    assert none is None
    assert report is not None
    assert (report.token_id, report.rank) == (11, int((expected > expected[11]).sum()))
    assert report.logprob == pytest.approx(expected[11].item())
    assert [token for token, _ in report.top] == expected.topk(3).indices.tolist()


@pytest.mark.parametrize("top_p", [0.9, 0.5, 0.02])
def test_a_wide_nucleus_is_drawn_from_exactly(top_p: float) -> None:
    """More tokens than are looked at first: by rejection, and by sorting what rejection leaves (at 0.02)."""
    vocab = 3000
    wide = torch.randn(vocab, generator=torch.Generator().manual_seed(5)) * 0.3
    probs = wide.softmax(-1)
    rows = 1000
    counts = torch.zeros(vocab, dtype=torch.int64)
    for start in range(0, 20_000, rows):
        dice = Dice(np.full(rows, 5, dtype=np.uint64), np.arange(start, start + rows))
        tokens = draw_from_nucleus(
            probs.expand(rows, -1),
            torch.zeros(rows, dtype=torch.int64),
            torch.full((rows,), top_p),
            torch.zeros(rows),
            dice,
        )
        counts += torch.bincount(tokens, minlength=vocab)
    expected = reference(wide, top_p=top_p)
    # Chi-square wants some draws in each cell: tokens are put together by rank, forty cells of equal mass.
    order = expected.argsort(descending=True)
    cells = (expected[order].cumsum(-1) * 40).long().clamp(max=39)
    together = torch.zeros(2, 40, dtype=torch.float64)
    together[0].index_add_(0, cells, counts[order].double())
    together[1].index_add_(0, cells, expected[order])
    assert not counts[expected == 0].any()
    assert_distribution(together[0], together[1])


def test_equally_likely_tokens_are_cut_by_id() -> None:
    """A flat distribution over a large vocabulary: half of the mass is the lower half of the ids."""
    dice = Dice(np.arange(500, dtype=np.uint64), np.arange(500))
    size = 4000
    tokens = draw_from_nucleus(
        torch.full((500, size), 1 / size), torch.zeros(500, dtype=torch.int64), torch.full((500,), 0.5),
        torch.zeros(500), dice,
    )  # fmt: skip
    assert tokens.max() <= size // 2
    assert len(tokens.unique()) > 400


def test_min_p_keeps_the_likeliest() -> None:
    """At min_p 1 only the maximum is left."""
    probs = torch.tensor([[0.2, 0.5, 0.3], [0.2, 0.5, 0.3]])
    kept = drop_unlikely(probs, torch.tensor([1.0, 0.0]))
    assert kept[0].tolist() == [0, 0.5, 0]
    assert torch.equal(kept[1], probs[1])
