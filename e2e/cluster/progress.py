"""Tells what is being done and how long each part took: a spinner on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console


class Progress:
    """Steps are printed as they end, with their time; `quiet` prints nothing but errors."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._began = time.monotonic()

    @contextmanager
    def step(self, title: str) -> Iterator["Step"]:
        """Shows that `title` is under way, and when it ends, how long it took."""
        began = time.monotonic()
        step = Step(title, self._console)
        try:
            with self._console.status(title) if self._console.is_terminal else _nothing() as status:
                step.attach(status)
                yield step
        except BaseException:
            self._console.print(f"[red]✗[/red] {title} ({seconds(time.monotonic() - began)})")
            raise
        note = f" [dim]{step.note}[/dim]" if step.note else ""
        self._console.print(f"[green]✓[/green] {title}{note} [cyan]{seconds(time.monotonic() - began)}[/cyan]")

    def say(self, text: str) -> None:
        self._console.print(text)

    @property
    def elapsed(self) -> str:
        return seconds(time.monotonic() - self._began)


class Step:
    """A step under way; `note` is shown beside it when it ends."""

    def __init__(self, title: str, console: Console) -> None:
        self.note = ""
        self._title = title
        self._console = console
        self._status: object = None
        self._shown = time.monotonic()

    def attach(self, status: object) -> None:
        self._status = status

    def update(self, detail: str) -> None:
        """Replaces the detail behind the title; without a terminal, a line every half minute."""
        if hasattr(self._status, "update"):
            self._status.update(f"{self._title}: {detail}")
        elif time.monotonic() - self._shown > 30:
            self._console.print(f"  {detail}")
            self._shown = time.monotonic()


@contextmanager
def _nothing() -> Iterator[None]:
    yield None


def seconds(value: float) -> str:
    """`0.8 s`, `12.3 s`, `9 min 45 s`."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s"
