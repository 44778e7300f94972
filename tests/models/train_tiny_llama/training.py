"""The training loop: packed sequences, Muon for the matrices and AdamW for the rest, one cosine schedule.

Muon orthogonalises the momentum of each matrix (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural
networks"); on a model of this size it needs about half the steps of AdamW, and the steps are what costs.
"""

import itertools
import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from . import chat

logger = logging.getLogger("train_tiny_llama")

Epoch = Callable[[random.Random], list[str]]  # the documents of one epoch, in their order


@dataclass(frozen=True)
class Schedule:
    """How long and how fast. Lengths in tokens, sizes in sequences."""

    steps: int
    batch: int = 8
    sequence: int = 256
    long_sequence: int = (
        1024  # every `long_every`-th step trains on long sequences, so that far positions mean something
    )
    long_every: int = 8
    muon_rate: float = 0.02
    adam_rate: float = 0.004
    muon: bool = True
    warmup: int = 40
    seed: int = 20240229

    def factor(self, step: int) -> float:
        """Share of the peak rate at `step`: linear warm-up, then cosine down to 2 %."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def token_stream(tokenizer: PreTrainedTokenizerFast, epoch: Epoch, rng: random.Random) -> Iterator[int]:
    """Endless: epoch after epoch, each document as begin token, text, end token."""
    ends = [tokenizer.convert_tokens_to_ids(chat.EOS)]
    while True:
        for ids in tokenizer(epoch(rng))["input_ids"]:
            yield from ids + ends


def batches(stream: Iterator[int], schedule: Schedule) -> Iterator[Tensor]:
    """One `[batch, sequence]` int64 tensor a step; each holds `schedule.batch * schedule.sequence` tokens."""
    for step in range(schedule.steps):
        long = step % schedule.long_every == schedule.long_every - 1
        length = schedule.long_sequence if long else schedule.sequence
        size = schedule.batch * schedule.sequence
        yield torch.tensor(list(itertools.islice(stream, size))).view(size // length, length)


def optimizers(model: nn.Module, schedule: Schedule) -> list[torch.optim.Optimizer]:
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    hidden = {name for name, weight in trained if schedule.muon and weight.ndim == 2 and "embed" not in name}
    matrices = [weight for name, weight in trained if name in hidden]
    others = [weight for name, weight in trained if name not in hidden]
    made: list[torch.optim.Optimizer] = []
    if matrices:
        made.append(torch.optim.Muon(matrices, lr=schedule.muon_rate, weight_decay=0.02))
    if others:
        made.append(torch.optim.AdamW(others, lr=schedule.adam_rate, betas=(0.9, 0.97), weight_decay=0.01))
    return made


def train(model: nn.Module, batches_of_tokens: Iterator[Tensor], schedule: Schedule) -> float:
    """Trains in place; returns the mean loss of the last tenth of the steps, in nats a token."""
    made = optimizers(model, schedule)
    ramps = [torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.factor) for optimizer in made]
    losses: list[float] = []
    started = time.perf_counter()
    model.train()
    for step, tokens in enumerate(batches_of_tokens):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, ramp in zip(made, ramps, strict=True):
            optimizer.step()
            ramp.step()
        model.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if step % 20 == 0 or step + 1 == schedule.steps:
            logger.info(
                "step %d/%d loss %.3f, %.0f s", step + 1, schedule.steps, losses[-1], time.perf_counter() - started
            )
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail)


@torch.no_grad()
def mean_loss(model: nn.Module, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], longest: int = 1024) -> float:
    """Mean negative log likelihood of `texts`, in nats a token, each text cut at `longest` tokens."""
    model.eval()
    total, count = 0.0, 0
    for ids in tokenizer(list(texts))["input_ids"]:
        tokens = torch.tensor([ids[:longest]])
        predicted = tokens.shape[1] - 1
        if predicted:
            total += model(input_ids=tokens, labels=tokens, use_cache=False).loss.item() * predicted
            count += predicted
    return total / count
