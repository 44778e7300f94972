"""Progress of a fetch on a terminal."""

from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


class BarReporter:
    """One bar for the whole model."""

    def __init__(self, out: TextIO) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(file=out),
        )
        self._task: TaskID | None = None

    def start(self, files: int, total: int | None) -> None:
        self._task = self._bar.add_task(f"{files} files", total=total)
        self._bar.start()

    def advance(self, count: int) -> None:
        if self._task is not None:
            self._bar.advance(self._task, count)

    def note(self, message: str) -> None:
        self._bar.console.print(message, highlight=False)

    def finish(self) -> None:
        self._bar.stop()
