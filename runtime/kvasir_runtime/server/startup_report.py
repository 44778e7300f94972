"""Shows a start-up: a bar on a terminal, lines in a log otherwise."""

import logging
import sys
from typing import TYPE_CHECKING, Final

from kvasir_runtime.engine.messages import StartupProgress

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LINE_INTERVAL_S: Final = 5.0
"""How often a phase that goes on is logged again."""

logger = logging.getLogger("kvasir.startup")


class StartupReport:
    """Told of every step; `close` it when the start-up is over, well or badly."""

    def show(self, progress: StartupProgress, now: float) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Take away what should not stay on the screen."""


class LineReport(StartupReport):
    """A line when a phase begins and every few seconds while it lasts."""

    def __init__(self) -> None:
        self._phase = ""
        self._shown_at = 0.0

    def show(self, progress: StartupProgress, now: float) -> None:
        if progress.phase == self._phase and now - self._shown_at < LINE_INTERVAL_S:
            return
        self._phase, self._shown_at = progress.phase, now
        fields = {"phase": progress.phase, "percent": round(progress.progress * 100)}
        logger.info(progress.message or progress.phase, extra=fields)


class BarReport(StartupReport):
    """One bar for the phase at hand."""

    def __init__(self) -> None:
        from rich import progress  # noqa: PLC0415
        from rich.console import Console  # noqa: PLC0415 - only terminals pay for it

        columns = (*progress.Progress.get_default_columns()[:3], progress.TimeElapsedColumn())
        self._progress: Progress = progress.Progress(*columns, console=Console(stderr=True), transient=True)
        self._task: TaskID = self._progress.add_task("starting", total=1.0)
        self._progress.start()

    def show(self, progress: StartupProgress, now: float) -> None:
        del now
        label = progress.phase.replace("_", " ")
        self._progress.update(self._task, completed=progress.progress, description=label)

    def close(self) -> None:
        self._progress.stop()


def make_report(log_format: str) -> StartupReport:
    """A bar where a person watches, unless the log is wanted as JSON."""
    return BarReport() if sys.stderr.isatty() and log_format != "json" else LineReport()
