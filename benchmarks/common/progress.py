"""Progress of a benchmark: a bar on a terminal, otherwise an occasional line."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

LINE_INTERVAL = 20.0  # seconds between lines without a terminal
REDRAW_INTERVAL = 0.2


@contextmanager
def show_progress(
    console: Console | None, total: int, title: str = ""
) -> Iterator[Progress]:
    """Show a benchmark's progress while the block runs.

    Args:
        console: None shows nothing, as on ranks other than 0.
        total: how often `advance` will be called.
    """
    progress = Progress(console, total, title)
    try:
        yield progress
    finally:
        progress.stop()


class Progress:
    """Redraws between samples only: a thread would take processor time from them."""

    def __init__(self, console: Console | None, total: int, title: str):
        self._console, self._total, self._title = console, total, title
        self._done = 0
        self._began = self._shown = time.monotonic()
        self._bar: Bar | None = None
        if console is not None and console.is_terminal:
            columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            text = TextColumn("{task.description}")
            self._bar = Bar(
                *columns, text, console=console, auto_refresh=False, transient=True
            )
            self._task = self._bar.add_task(title, total=total)
            self._bar.start()

    def advance(self, step: str = "") -> None:
        """Count one more step as done, and show it if the last output is old enough."""
        self._done += 1
        now = time.monotonic()
        interval = REDRAW_INTERVAL if self._bar else LINE_INTERVAL
        if self._console is None or now - self._shown < interval:
            return
        self._shown = now
        text = f"{self._title} {step}".strip()
        if self._bar:
            self._bar.update(
                self._task, completed=self._done, description=text, refresh=True
            )
            return
        left = (now - self._began) / self._done * max(0, self._total - self._done)
        self._console.print(f"{self._done} of {self._total}, {left:.0f} s left: {text}")

    def stop(self) -> None:
        """Remove the bar from the terminal."""
        if self._bar:
            self._bar.stop()
