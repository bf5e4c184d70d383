"""Progress of a run on rank 0: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Literal

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..launcher import environment
from .report import Report

Kind = Literal["line", "ranks"]

_WIDEST = 88  # columns
_REDRAW = 0.1  # seconds between updates of the live line
_PLAIN = 3.0  # seconds between plain lines
_FIGURES = {  # of a report, in this order, and how they are shown
    "train_loss": "train_loss {:.3f}",
    "val_loss": "val_loss {:.3f}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "learning_rate": "learning rate {:.1e}",
}
_OF_A_RANK = {"step_time": 1e3, "wait_time": 1e3, "peak_memory": 1.0}


class _Console(Console):
    """A console that leaves the cursor alone: a job that is killed can't restore it."""

    def show_cursor(self, show: bool = True) -> bool:
        return False


def make_console() -> Console:
    """Return a console that is a terminal where the user has one.

    Under mpirun a rank writes to a pipe, and `mlxdist run` says what is behind it.
    """
    is_terminal = None  # rich finds out
    if environment.started_by_mpirun():
        is_terminal = environment.get(environment.TERMINAL) == "1"
    width = min(_WIDEST, int(environment.get(environment.COLUMNS) or _WIDEST))
    return _Console(force_terminal=is_terminal, width=width, highlight=False)


class Progress:
    """Shows the last values of a run, its step and the time that is left.

    Args:
        steps: of the whole run; None if that is not known.
        done: steps that it has taken before.
        hosts: of the ranks.
        kind: "ranks" adds a row for each rank.
        title: above the live line.
    """

    def __init__(
        self,
        *,
        steps: int | None,
        done: int,
        hosts: Sequence[str],
        kind: Kind,
        title: str = "",
    ):
        self._steps, self._first, self._step = steps, done, done
        self._hosts, self._kind, self._title = hosts, kind, title
        self._figures: dict[str, float] = {}
        self._report: Report | None = None
        self._began = 0.0
        self._shown = -math.inf
        self._console = make_console()
        # Redrawn by `_show`: automatic refreshing would need a thread.
        self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def start(self) -> None:
        """Begin to show it; the time that is left is counted from here."""
        self._began = time.monotonic()
        if self._console.is_terminal:
            self._live.start()
        elif self._title:
            self._console.print(Text(self._title))

    def advance(self, step: int) -> None:
        """Show that a step was taken, where the line is a live one."""
        self._step = step
        if self._live.is_started and self._is_due(_REDRAW):
            self._redraw()

    def show(self, report: Report) -> None:
        """Show a report: at once on a terminal, elsewhere every few seconds."""
        self._step = report.step
        self._figures |= report.values
        if "step_time" in report.by_rank:
            self._report = report
        if self._live.is_started:
            self._redraw()
        elif self._is_due(_PLAIN) or report.step == self._steps:
            self._print(report.values)

    def close(self) -> None:
        """End the live line, and print the last figures in its place."""
        if self._live.is_started:
            self._live.stop()
            self._print(self._figures)

    def _is_due(self, seconds: float) -> bool:
        return time.monotonic() - self._shown > seconds

    def _print(self, figures: Mapping[str, float]) -> None:
        self._shown = time.monotonic()
        of = "" if self._steps is None else f"/{self._steps}"
        parts = [f"step {self._step}{of}", *_texts(figures)]
        if time_left := self._time_left():
            parts.append(time_left)
        self._console.print("   ".join(parts), soft_wrap=True)
        if self._kind == "ranks" and "step_time" in figures and self._report:
            self._console.print(self._rank_table(self._report))

    def _redraw(self) -> None:
        self._shown = time.monotonic()
        bar = Table.grid(padding=(0, 2))
        if self._steps is not None:
            text = f"step {self._step} of {self._steps}"
            bar.add_row(
                ProgressBar(self._steps, self._step, width=30),
                ", ".join(filter(None, [text, self._time_left()])),
            )
        else:
            bar.add_row(f"step {self._step}")
        lines = [Text(self._title, style="dim")] if self._title else []
        parts: list[Table | Text] = [
            *lines,
            bar,
            Text("   ".join(_texts(self._figures))),
        ]
        if self._kind == "ranks" and self._report is not None:
            parts.append(self._rank_table(self._report))
        # mpirun forwards whole lines only, so an empty line must follow.
        self._live.update(Group(*parts, ""), refresh=True)

    def _time_left(self) -> str:
        taken = self._step - self._first
        if self._steps is None or not taken or self._step >= self._steps:
            return ""
        seconds = (time.monotonic() - self._began) / taken * (self._steps - self._step)
        return f"{_duration(seconds)} left"

    def _rank_table(self, report: Report) -> Table:
        names = ("rank", "host", "step ms", "waiting ms", "peak GB")
        table = Table(*names, box=None, pad_edge=False, header_style="dim")
        for rank, host in enumerate(self._hosts):
            cells = [
                _cell(report.by_rank[name][rank] * factor)
                if name in report.by_rank
                else "-"
                for name, factor in _OF_A_RANK.items()
            ]
            table.add_row(str(rank), Text(host), *cells)
        return table


def _texts(figures: Mapping[str, float]) -> list[str]:
    return [text.format(figures[n]) for n, text in _FIGURES.items() if n in figures]


def _cell(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "-"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
