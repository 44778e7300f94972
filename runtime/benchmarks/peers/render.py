"""Shows a report on the terminal, and writes it as Markdown and JSON."""

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.peers.report import Report
from benchmarks.peers.tables import Table

TITLE = "Kvasir beside its peers on a CPU"
EXPLANATION = """\
Medians over {rounds} interleaved rounds, one engine at a time, the same weights and the same token ids for all, greedy,
past any end token. The bound is prefill at the machine's rate of bfloat16 matrix products plus decode at the bandwidth
of reading weights and KV cache, both measured in the same run.
"""


def show(report: Report, console: Console) -> None:
    for table in report.tables:
        console.print(rich_table(table))
    for note in report.notes:
        console.print(f"• {note}", highlight=False)


def rich_table(table: Table) -> RichTable:
    shown = RichTable(title=table.title, title_justify="left", header_style="bold")
    for index, column in enumerate(table.columns):
        shown.add_column(column, justify="right" if index else "left", no_wrap=not index)
    for row in table.rows:
        shown.add_row(*row)
    return shown


def markdown(report: Report) -> str:
    rounds = len({sample.round_index for sample in report.session.samples.entries})
    origin = report.origin
    facts = {
        "Hardware": origin.hardware,
        "Commit": origin.commit,
        "Date": origin.date,
        "Command": f"`{origin.command}`",
        "Model": origin.model,
        "Versions": ", ".join(f"{name} {version}" for name, version in sorted(report.session.versions.items())),
    }
    parts = [
        f"# {TITLE}",
        EXPLANATION.format(rounds=rounds).rstrip(),
        "\n".join(f"- {name}: {value}" for name, value in facts.items()),
        *(["## Notes", "\n".join(f"- {note}" for note in report.notes)] if report.notes else []),
        *(markdown_table(table) for table in report.tables),
        "## Configurations",
        "\n".join(f"- {name}: {text}" for name, text in report.session.configurations.items()),
    ]
    return "\n\n".join(parts) + "\n"


def markdown_table(table: Table) -> str:
    lines = [
        f"## {table.title}",
        "",
        _row(table.columns),
        _row(["---", *["---:"] * (len(table.columns) - 1)]),
        *(_row(row) for row in table.rows),
    ]
    return "\n".join(lines)


def as_json(report: Report) -> str:
    """Everything, samples included, but the engines' outputs."""
    session = asdict(report.session)
    kept = {key: value for key, value in session.items() if key not in ("prompts", "outputs")}
    content = {
        "origin": asdict(report.origin),
        "bounds": asdict(report.bounds) if report.bounds else None,
        "goals": [{**asdict(goal), "met": goal.met} for goal in report.goals],
        "agreement": [asdict(one) for one in report.agreements],
        "notes": list(report.notes),
        **kept,
        "samples": session["samples"]["entries"],
    }
    return json.dumps(content, indent=2) + "\n"


def write(report: Report, folder: Path, stem: str) -> list[Path]:
    """Write both forms; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {folder / f"{stem}.md": markdown(report), folder / f"{stem}.json": as_json(report)}
    for path, content in contents.items():
        path.write_text(content, encoding="utf-8")
    return list(contents)


def _row(cells: "list[str] | tuple[str, ...]") -> str:
    return "| " + " | ".join(cells) + " |"
