"""The tables of operator/README.md are those of the code. On failure, put what the test renders between the marks."""

import inspect
import re
from types import ModuleType

import pytest

from kvasir_operator import metrics
from kvasir_operator.api import defaults
from kvasir_operator.api.crd import ROOT
from kvasir_operator.fleet import adapters
from kvasir_operator.placement import assessment, groups
from kvasir_operator.planning import (
    drain,
    failures,
    gates,
    inspecting,
    placing,
    revisions,
    room,
    state,
    trial,
    verdicts,
    warming,
)

README = (ROOT / "operator" / "README.md").read_text(encoding="utf-8")


def between(mark: str) -> str:
    return README.partition(f"<!-- {mark} -->\n")[2].partition(f"<!-- /{mark} -->")[0].strip()


def compact(table: str) -> str:
    """A table without the blanks that align it in the code."""
    lines = [re.sub(r"\s*\|\s*", " | ", line.strip().removeprefix("#").strip()).strip() for line in table.splitlines()]
    return "\n".join(
        "|" + "|".join(["---"] * (line.count("|") - 1)) + "|"
        if line.startswith("|---") or set(line) <= set("|- ")
        else line
        for line in lines
    )


def failure_table() -> str:
    rows = [
        f"| `{cause}` | {f'`{row.condition}`' if row.condition else '-'} | {row.remedy} |"
        for cause, row in failures.TABLE.items()
    ]
    return "\n".join(["| cause | condition | what to do |", "|---|---|---|", *rows])


def condition_tables() -> str:
    """For each condition what its function says, and the table above it."""
    source = inspect.getsource(verdicts)
    parts = []
    for kind, judge in verdicts.VERDICTS.items():
        above = source.partition(f"\ndef {judge.__name__}(")[0]
        table = re.search(r"(?:^# \|.*\n?)+\Z", above, re.MULTILINE)
        assert table is not None, f"no truth table above {judge.__name__}"
        words = inspect.getdoc(judge) or ""
        parts.append(f"**`{kind}`**{words.removeprefix(kind)}\n\n{compact(table[0])}")
    return "\n\n".join(parts)


def table_in(text: str) -> str:
    return compact("\n".join(line for line in text.splitlines() if line.lstrip("# ").startswith("|")))


def table_above(module: ModuleType, function: str) -> str:
    """The table in the comment above a function."""
    above = inspect.getsource(module).partition(f"\ndef {function}(")[0]
    table = re.search(r"(?:^# \|.*\n?)+\Z", above, re.MULTILINE)
    assert table is not None, f"no table above {function}"
    return compact(table[0])


def metrics_table() -> str:
    """Every series of the operator, in the order of the code."""
    rows = []
    for name in (each for each in vars(metrics) if each in metrics.__all__ and each != "REGISTRY"):
        collector = getattr(metrics, name)
        [family] = collector.describe()
        suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
        labels = ", ".join(f"`{label}`" for label in collector._labelnames) or "-"
        rows.append(f"| `{family.name}{suffix}` | {family.type} | {labels} | {family.documentation} |")
    return "\n".join(["| series | type | labels | what it says |", "|---|---|---|---|", *rows])


RENDERED = {
    "metrics": metrics_table(),
    "failures": failure_table(),
    "conditions": condition_tables(),
    "stages": table_in(inspect.getsource(state.Pod)),
    "target": table_above(revisions, "choose_target"),
    "trial": table_above(trial, "judge"),
    "room": table_in(room.__doc__ or ""),
    "gates": table_in(gates.__doc__ or ""),
    "adapters": table_in(adapters.__doc__ or ""),
    "warming": table_in(warming.__doc__ or ""),
    "drain": table_in(drain.__doc__ or ""),
    "inspecting": table_in(inspecting.__doc__ or ""),
    "assessment": table_in(assessment.__doc__ or ""),
    "placing": table_in(placing.__doc__ or ""),
    "defaults": table_in(defaults.__doc__ or ""),
    "groups": table_in(groups.__doc__ or ""),
}


@pytest.mark.parametrize("mark", RENDERED)
def test_tables(mark: str) -> None:
    """Word for word."""
    assert between(mark) == RENDERED[mark]
