"""The files of a run's folder: what there is, and what to do about what there isn't.

Any of them may be missing, torn or made by others. What can't be read is named in
`problems` or counted, and the rest is used.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..launcher.private_files import read_text
from .breakdown import Breakdown, summarize

METRICS, CONFIG, TIMELINE, FAILURE, PAGE = (
    "metrics.jsonl",
    "run.json",
    "timeline.json",
    "failure.json",
    "report.html",
)

_REMEDIES = {
    METRICS: "no metrics: log them with mlxdist.trackers.RunLog",
    CONFIG: "no configuration: mlxdist.trackers.RunLog writes it",
    TIMELINE: "no timeline: `mlxdist run --timeline {folder}/timeline.json` writes one "
    "when the job ends",
    FAILURE: "no outcome: `mlxdist run --report {folder}/failure.json` writes it when "
    "the job ends",
}
_LARGEST = 2**28  # bytes of a file of metrics or of a configuration
_LAST_STEP = 2**53  # larger integers are no exact floats
_DEEPEST = 8  # levels of a configuration that are shown

Row = Mapping[str, float]
Points = Sequence[tuple[float, float]]  # x, such as the step, and y


@dataclass(frozen=True)
class Metrics:
    """The lines of metrics.jsonl, in order of their steps.

    Attributes:
        rows: the numbers of each line, by name; not finite ones too.
        skipped: how many lines are no such objects, as the last one of a killed run.
    """

    rows: Sequence[Row]
    skipped: int

    def points(self, *names: str) -> Points:
        """Return the step and value of the first of these names that lines have."""
        for name in names:
            found = [(row["step"], row[name]) for row in self.rows if name in row]
            if found:
                return found
        return ()

    def last(self, name: str) -> float | None:
        """Return the last finite value of a metric."""
        point = self.last_finite(name)
        return None if point is None else point[1]

    def last_finite(self, *names: str) -> tuple[float, float] | None:
        """Return the last finite value of the first of these names, behind its step."""
        points = self.points(*names)
        return next((p for p in reversed(points) if math.isfinite(p[1])), None)


@dataclass(frozen=True)
class Run:
    """What there is of a run.

    Attributes:
        name: of its folder.
        metrics, config, outcome, breakdown: of its files; None for a missing one.
        missing: sentences on what is missing, and the option that gives it.
        problems: sentences on what can't be read.
    """

    name: str
    metrics: Metrics | None = None
    config: Mapping[str, object] | None = None
    outcome: Mapping[str, object] | None = None
    breakdown: Breakdown | None = None
    missing: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_run(folder: Path | str) -> Run:
    """Read what there is of a run.

    Raises:
        ValueError: there is no such folder, or none of the files is in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; wanted the folder of a run")
    found = _Reader(folder)
    run = Run(
        folder.absolute().name,
        found.metrics(),
        found.json_object(CONFIG),
        found.outcome(),
        found.breakdown(),
        found.missing,
        found.problems,
    )
    if len(run.missing) == len(_REMEDIES):
        raise ValueError(
            f"{folder} has none of {', '.join(_REMEDIES)}; wanted the folder of a run"
        )
    return run


class _Reader:
    """Reads the files of a folder, and notes what it can't."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.missing: list[str] = []
        self.problems: list[str] = []

    def metrics(self) -> Metrics | None:
        text = self._text(METRICS)
        return None if text is None else parse_metrics(text)

    def json_object(self, name: str) -> Mapping[str, object] | None:
        text = self._text(name)
        if text is None:
            return None
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            self.problems.append(f"{name} is no JSON: {error}")
            return None
        if isinstance(value, dict):
            return value
        self.problems.append(f"{name} holds no JSON object")
        return None

    def outcome(self) -> Mapping[str, object] | None:
        self._compare_age(FAILURE)
        return self.json_object(FAILURE)

    def breakdown(self) -> Breakdown | None:
        path = self._folder / TIMELINE
        if self._lacks(TIMELINE):
            return None
        try:
            breakdown = summarize(path)
        except (OSError, ValueError) as error:
            self.problems.append(str(error))
            return None
        self._compare_age(TIMELINE)
        return breakdown

    def _compare_age(self, name: str) -> None:
        """Note that a file is older than the run, whose start writes `run.json`."""
        with contextlib.suppress(OSError):
            started = (self._folder / CONFIG).lstat().st_mtime
            if (self._folder / name).lstat().st_mtime < started:
                self.problems.append(
                    f"{name} is older than {CONFIG}, which each start of a run writes: "
                    "it is of an earlier job, unless the files were copied"
                )

    def _text(self, name: str) -> str | None:
        if self._lacks(name):
            return None
        try:
            return read_text(self._folder / name, _LARGEST)
        except (OSError, ValueError) as error:
            self.problems.append(f"{name} can't be read: {error}")
            return None

    def _lacks(self, name: str) -> bool:
        try:
            (self._folder / name).lstat()
        except OSError:
            self.missing.append(_REMEDIES[name].format(folder=self._folder))
            return True
        return False


def parse_metrics(text: str) -> Metrics:
    """Return the lines of metrics.jsonl, in order of their steps."""
    rows: list[Row] = []
    skipped = 0
    for line in text.split("\n"):
        if not line.strip():
            continue
        row = _row(line)
        if row is None:
            skipped += 1
        else:
            rows.append(row)
    rows.sort(key=lambda row: row["step"])
    return Metrics(rows, skipped)


def _row(line: str) -> Row | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict):
        return None
    # JSON has no nan: null stands for it, and for infinity.
    row = {
        name: math.nan if x is None else float(x)
        for name, x in entry.items()
        if x is None or _is_number(x)
    }
    return row if abs(row.get("step", math.nan)) < _LAST_STEP else None


def _is_number(value: object) -> bool:
    if isinstance(value, int):  # some are too large for a float
        return not isinstance(value, bool) and abs(value) < 10**300
    return isinstance(value, float)


def flat(value: object, name: str = "", depth: int = 0) -> list[tuple[str, str]]:
    """Return the values of a JSON object with their paths, as text."""
    if isinstance(value, Mapping) and value and depth < _DEEPEST:
        return [
            pair
            for key, item in value.items()
            for pair in flat(item, f"{name}.{key}" if name else str(key), depth + 1)
        ]
    if isinstance(value, str):
        return [(name, value)]
    if isinstance(value, int) and not isinstance(value, bool):
        return [(name, f"{value:,}")]
    if isinstance(value, list) and all(isinstance(x, str | int | float) for x in value):
        return [(name, ", ".join(map(str, value)))]
    return [(name, json.dumps(value))]
