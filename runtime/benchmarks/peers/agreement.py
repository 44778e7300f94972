"""Whether the engines computed the same model: greedy outputs compared, pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.peers.tables import NOT_MEASURED, Table, percent
from benchmarks.peers.workers.protocol import TokenIds

NEAR_TIE: Final = 0.1
"""A regret up to this many standard deviations of the logits is a near-tie that rounding may decide either way."""
LEAST_SHARE: Final = 0.99


@dataclass(frozen=True)
class Agreement:
    """One engine's greedy outputs against float32 (regrets, see workers/judge.py) and against another engine's."""

    engine: str
    highest: float
    near_ties: float
    worst_regret: float
    first_tokens: float | None
    common_prefix: float | None

    @property
    def plausible(self) -> bool:
        """Whether the engine computed the model: nearly all its tokens are float32's choice or a near-tie of it."""
        return self.near_ties >= LEAST_SHARE


def judge(
    engine: str,
    regrets: Sequence[Sequence[float]],
    outputs: Sequence[TokenIds],
    reference: Sequence[TokenIds] | None,
) -> Agreement:
    """Summarise one engine; `reference` are the outputs of the engine that others are compared with."""
    flat = [regret for row in regrets for regret in row]
    pairs = list(zip(outputs, reference, strict=False)) if reference else []
    return Agreement(
        engine=engine,
        highest=sum(regret == 0 for regret in flat) / len(flat),
        near_ties=sum(regret <= NEAR_TIE for regret in flat) / len(flat),
        worst_regret=max(flat),
        first_tokens=_mean([float(mine[0] == theirs[0]) for mine, theirs in pairs]),
        common_prefix=_mean([common_prefix(mine, theirs) for mine, theirs in pairs]),
    )


def common_prefix(first: TokenIds, second: TokenIds) -> int:
    """How many tokens two outputs share before they part."""
    pairs = zip(first, second, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def agreement_table(judged: Sequence[Agreement], reference: str) -> Table:
    columns = (
        "engine",
        "float32's choice",
        "or a near-tie",
        "worst regret, std",
        f"first token as {reference}",
        "tokens alike",
    )
    rows = tuple(
        (
            one.engine,
            percent(one.highest),
            percent(one.near_ties),
            f"{one.worst_regret:.2f}",
            percent(one.first_tokens),
            NOT_MEASURED if one.common_prefix is None else f"{one.common_prefix:.1f}",
        )
        for one in judged
    )
    return Table("Greedy outputs", columns, rows)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
