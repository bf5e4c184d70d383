"""How far a benchmark is: a bar on a terminal, otherwise a line now and then."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

PAUSE = 20.0  # seconds between lines where there is no terminal
REDRAW = 0.2


class Progress:
    """A bar that is redrawn between samples only: a thread would take their time.

    Args:
        console: None shows nothing, as on ranks other than 0.
    """

    def __init__(self, console: Console | None, total: int, title: str = ""):
        self.console, self.total, self.title = console, total, title
        self.done, self.began, self.shown = 0, time.monotonic(), time.monotonic()
        self.bar: Bar | None = None
        if console is not None and console.is_terminal:
            columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            text = TextColumn("{task.description}")
            self.bar = Bar(
                *columns, text, console=console, auto_refresh=False, transient=True
            )
            self.task = self.bar.add_task(title, total=total)

    def __enter__(self) -> Progress:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar:
            self.bar.stop()

    def advance(self, what: str = "") -> None:
        """One more is done; shows it where the last time is long enough ago."""
        self.done += 1
        now = time.monotonic()
        if self.console is None or now - self.shown < (REDRAW if self.bar else PAUSE):
            return
        self.shown = now
        text = f"{self.title} {what}".strip()
        if self.bar:
            self.bar.update(
                self.task, completed=self.done, description=text, refresh=True
            )
            return
        left = (now - self.began) / self.done * max(0, self.total - self.done)
        self.console.print(f"{self.done} of {self.total}, {left:.0f} s left: {text}")
