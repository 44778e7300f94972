"""What `up` decided about a cluster, kept beside its state."""

import json
from dataclasses import asdict, dataclass

from e2e.cluster.layout import Layout


@dataclass(frozen=True)
class Record:
    """Enough to recognise the cluster and to take it down."""

    slot: int
    version: str
    binaries: str
    complete: bool = False  # True once `up` has seen the cluster usable


def write_record(layout: Layout, record: Record) -> None:
    """Replaces the record in one step."""
    layout.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = layout.record.with_suffix(".new")
    draft.write_text(json.dumps(asdict(record)))
    draft.replace(layout.record)


@dataclass(frozen=True)
class Report:
    """What the supervisor tells of a component; `ends` is how often it has ended and was started again."""

    running: bool
    ends: int
    last_status: int


def reports(layout: Layout) -> dict[str, Report]:
    """The supervisor's last report, by component; empty before the first."""
    try:
        content = json.loads((layout.state / "components.json").read_text())
    except FileNotFoundError:
        return {}
    return {name: Report(**report) for name, report in content.items()}


def read_record(layout: Layout) -> Record | None:
    """The record, or None when there is no cluster or `up` was cut short before it decided anything."""
    try:
        return Record(**json.loads(layout.record.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
