"""How the tokens of one request are chosen."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Final

from kvasir_runtime.contract.memory import MAX_LOGIT_BIASES
from kvasir_runtime.structured.constraint import Constraint


@dataclass(frozen=True)
class SamplingParams:
    """Checked at construction: ValueError names the field, the bound and the value.

    `temperature` 0 is greedy. `top_k` 0 keeps all tokens. `seed` makes a request reproducible whatever else is in
    its batch. `constraint` says what an output that ends by itself looks like. `stop` strings are looked for in the
    text by the detokenizer, the rest by the engine.
    """

    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        for spec in fields(self):
            check = _CHECKS.get(spec.name)
            value = getattr(self, spec.name)
            if check is not None and value is not None and not check[0](value):
                msg = f"{spec.name} must be {check[1]}, got {value}"
                raise ValueError(msg)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            msg = f"min_tokens must be at most max_tokens ({self.max_tokens}), got {self.min_tokens}"
            raise ValueError(msg)

    @property
    def least_output_tokens(self) -> int:
        """Tokens that each continuation produces in any case."""
        ends_early = not self.ignore_eos or self.stop or self.stop_token_ids
        return max(1, self.min_tokens if ends_early or self.max_tokens is None else self.max_tokens)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


def _between(low: float, high: float) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: math.isfinite(value) and low <= value <= high), f"between {low:g} and {high:g}"


_CHECKS: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "n": _between(1, 128),
    "max_tokens": (lambda value: value >= 1, "at least 1"),
    "min_tokens": (lambda value: value >= 0, "at least 0"),
    "temperature": _between(0, 100),
    "top_p": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "top_k": (lambda value: value >= 0, "at least 0 (0 keeps all tokens)"),
    "min_p": _between(0, 1),
    "repetition_penalty": (lambda value: math.isfinite(value) and value > 0, "above 0"),
    "presence_penalty": _between(-2, 2),
    "frequency_penalty": _between(-2, 2),
    "logit_bias": (
        lambda value: (
            len(value) <= MAX_LOGIT_BIASES
            and all(math.isfinite(bias) and -100 <= bias <= 100 for bias in value.values())
        ),
        f"a map of at most {MAX_LOGIT_BIASES} token ids to values between -100 and 100",
    ),
    "seed": (lambda value: -(2**63) <= value < 2**63, "a 64-bit integer"),
    "stop": (all, "made of non-empty strings"),
    "logprobs": _between(0, 20),
    "prompt_logprobs": _between(0, 20),
}
