"""Golden prompts: whether a new revision gives them the log-probabilities that the old one gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

SHOWN: Final = 60
"""Characters of a prompt that are shown."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A prompt's tokens, and the log-probability of each given those before it, in nats; the first has none."""

    tokens: tuple[str, ...]
    logprobs: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Whether two revisions agree on all prompts, in words; `worst` is the largest mean difference, in nats a token."""

    agree: bool
    message: str
    worst: float = 0.0


def compare(prompts: Sequence[str], old: Sequence[Scored], new: Sequence[Scored], tolerance: float) -> Comparison:
    """Compare prompt by prompt; the first that leaves the bound is told.

    For each prompt: the mean over its tokens of |new - old|. Revisions that cut a prompt differently do not agree.
    """
    worst = 0.0
    for prompt, before, after in zip(prompts, old, new, strict=True):
        shown = repr(prompt if len(prompt) <= SHOWN else prompt[: SHOWN - 1] + "…")
        if before.tokens != after.tokens:
            counts = f"{len(after.tokens)} instead of {len(before.tokens)}"
            return Comparison(
                agree=False, message=f"golden prompt {shown} is cut into other tokens ({counts}): another tokenizer"
            )
        difference = mean_difference(before, after)
        if not difference <= tolerance:  # neither is what is no number
            bound = f"more than autoRollback.goldenTolerance ({tolerance:g})"
            message = f"log-probabilities of golden prompt {shown} differ by {difference:.3g} nats a token, {bound}"
            return Comparison(agree=False, message=message, worst=difference)
        worst = max(worst, difference)
    return Comparison(
        agree=True, message=f"{len(prompts)} golden prompts differ by at most {worst:.3g} nats a token", worst=worst
    )


def mean_difference(old: Scored, new: Scored) -> float:
    """Mean of |new - old| over the tokens that both give a number; 0 for a prompt of one token."""
    pairs = [(a, b) for a, b in zip(old.logprobs, new.logprobs, strict=True) if a is not None and b is not None]
    return sum(abs(a - b) for a, b in pairs) / len(pairs) if pairs else 0.0
