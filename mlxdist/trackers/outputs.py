"""Where reports go: files, trackers and the terminal, all on rank 0."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from ..comm.agreement import error_text
from ..optim.user_warning import warn_user
from . import run_info, services
from .guarded import Guarded
from .json_lines import JsonLines
from .progress import Progress
from .report import Report
from .run_info import Info
from .tracker import Tracker


class Outputs:
    """The files of a run, its trackers and its progress.

    Args:
        folder: of the run; None for no files.
        describe: returns what `run.json` says, which may be more later.
        trackers: names and objects.
        done: steps that the run has taken.
        progress: on the terminal, if any.

    Attributes:
        trained_tokens: as the run's last report before `done` has it.

    Raises:
        OSError: the folder can't be written.
        MissingPackageError: a tracker's package is not installed.
        ValueError: there is no tracker of a name, or it needs a folder, or an object
            lacks a method.
    """

    def __init__(
        self,
        folder: Path | None,
        describe: Callable[[], Info],
        trackers: Iterable[str | Tracker],
        done: int,
        progress: Progress | None,
    ):
        self._folder, self._describe, self._done = folder, describe, done
        self._trackers: list[Tracker] = []
        self._lines: JsonLines | None = None
        self._progress = progress
        self._warned: set[str] = set()
        self.trained_tokens, seconds = 0.0, 0.0
        self._info = describe()
        self._is_complete = False
        if folder is not None:
            self._info = self._write_info(self._info)
            self._lines = JsonLines(folder / "metrics.jsonl", done)
            for entry in self._lines.earlier:
                seconds = _number(entry.get("time"), seconds)
                tokens = entry.get("trained_tokens")
                self.trained_tokens = _number(tokens, self.trained_tokens)
        for tracker in [trackers] if isinstance(trackers, str) else trackers:
            self._add(tracker)
        if progress is not None:
            progress.start()
        self._began = time.monotonic() - seconds

    def write(self, report: Report) -> None:
        """Write a report everywhere. Whatever fails is a warning."""
        self._warn(report)
        seconds = time.monotonic() - self._began
        values = {"time": round(seconds, 3), **report.values}
        if self._lines is not None:
            left_out = {"left_out": report.left_out} if report.left_out else {}
            self._lines.log(report.step, {**values, **left_out})
            self._complete_info()
        for tracker in self._trackers:
            tracker.log(report.step, values)
        if self._progress is not None:
            self._progress.show(report)

    def advance(self, step: int) -> None:
        """Show that a step was taken."""
        if self._progress is not None:
            self._progress.advance(step)

    def finish(self) -> None:
        """Close everything."""
        if self._progress is not None:
            self._progress.close()
        if self._lines is not None:
            self._lines.finish()
        for tracker in self._trackers:
            tracker.finish()
        self._trackers = []

    def _add(self, tracker: str | Tracker) -> None:
        if not isinstance(tracker, str):
            self._trackers.append(Guarded(_checked(tracker)))
            return
        if tracker not in services.NAMES:
            raise ValueError(
                f"found the tracker {tracker!r}, wanted one of "
                f"{', '.join(services.NAMES)}"
            )
        if self._folder is None:
            raise ValueError(
                f"the tracker {tracker!r} needs a folder for the run; found none"
            )
        run = services.Run(self._folder, self._info, self._done)
        try:
            self._trackers.append(Guarded(services.make(tracker, run)))
        except services.MissingPackageError:
            raise
        except Exception as error:
            warn_user(
                f"the tracker {tracker!r} can't start, and training goes on without "
                f"it: {error_text(error)}"
            )

    def _write_info(self, info: Info) -> Info:
        assert self._folder is not None
        path = self._folder / "run.json"
        return run_info.write(path, info, continues=self._done > 0)

    def _complete_info(self) -> None:
        """Add what is known once the optimizer is initialized, by its first step."""
        if self._is_complete:
            return
        self._is_complete = True
        with contextlib.suppress(OSError):  # of which metrics.jsonl warns
            self._info = self._write_info({**self._info, **self._describe()})

    def _warn(self, report: Report) -> None:
        """Warn of values that some ranks don't have, once for each name."""
        for name, problem in report.problems().items():
            if name not in self._warned:
                self._warned.add(name)
                warn_user(problem)


def _checked(tracker: Tracker) -> Tracker:
    methods = (getattr(tracker, name, None) for name in ("log", "finish"))
    if isinstance(tracker, type) or not all(map(callable, methods)):
        raise ValueError(
            f"found the tracker {tracker!r}, wanted a name or an object with the "
            "methods log(step, values) and finish()"
        )
    return tracker


def _number(value: object, default: float) -> float:
    return float(value) if isinstance(value, int | float) else default
