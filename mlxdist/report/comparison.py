"""Several runs on one page: their curves, last values, and what differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..launcher.private_files import write_atomically
from . import sections
from .charts import Line
from .markup import Markup, element
from .page import document
from .run_files import Run, flat

MOST_RUNS = 4  # that colors tell apart

Runs = Mapping[str, Run]  # by the name that the reader knows them by

_CHARTS = (
    ("Training loss", sections.TRAINING_LOSS, "loss", False),
    ("Validation loss", ("val_loss",), "loss", False),
    ("Speed", ("tokens_per_second",), "tokens/s", True),
    ("Memory of a rank, mean", ("peak_memory",), "peak memory (GB)", True),
    ("Time of a step, mean", ("step_time",), "seconds", True),
)
_OF_EACH_RUN = ("id", "started")  # of run.json: they differ in any case


def write_comparison(runs: Runs, path: Path | str) -> None:
    """Write the page of several runs, whole or not at all, as `write_page` does.

    Raises:
        OSError: it can't be written.
    """
    write_atomically(Path(path), comparison_of(runs))


def comparison_of(runs: Runs) -> str:
    """Return the page of 2 to 4 runs, as HTML."""
    title = ", ".join(runs)
    head = ("", *runs)
    return document(
        f"{title}: runs of mlxdist",
        element("h1", title),
        sections.table(head, list(number_rows(runs))),
        element("div", *_charts(runs), cls="charts"),
        _differences(head, runs),
        _problems(runs),
    )


def number_rows(runs: Runs) -> Iterator[Sequence[str]]:
    """Yield rows of a label, and a text for each run."""
    ends = [_end(run) for run in runs.values()]
    if any(ends):
        yield ("end of the job", *ends)
    numbers = [sections.numbers(run) for run in runs.values()]
    for label in dict.fromkeys(label for each in numbers for label in each):
        yield (label, *(each.get(label, "") for each in numbers))


def _end(run: Run) -> str:
    """Return how a run ended; "" if that is not known."""
    code = None if run.outcome is None else run.outcome.get("exit_code")
    if code is None:
        return ""
    return "finished" if code == 0 else f"exit code {code}"


def _charts(runs: Runs) -> Iterator[Markup]:
    for title, metrics, label, zero in _CHARTS:
        lines = [
            Line(name, run.metrics.points(*metrics) if run.metrics else ())
            for name, run in runs.items()
        ]
        if any(line.points for line in lines):
            yield sections.chart(title, lines, label, zero=zero)


def _differences(head: Sequence[str], runs: Runs) -> Markup:
    """What differs in the runs' configurations."""
    configs = [
        {
            name: value
            for name, value in (flat(run.config) if run.config else ())
            if name not in _OF_EACH_RUN
        }
        for run in runs.values()
    ]
    rows = [
        (name, *values)
        for name in dict.fromkeys(name for each in configs for name in each)
        if len(set(values := [sections.short(c.get(name, "")) for c in configs])) > 1
    ]
    same = element("p", "The configurations are the same.")
    return sections.section(
        "What differs", sections.table(head, rows) if rows else same
    )


def _problems(runs: Runs) -> Markup:
    lines = [f"{name}: {x}" for name, run in runs.items() for x in run.problems]
    lines += [
        f"{name}: no metrics, so that it is in no chart"
        for name, run in runs.items()
        if run.metrics is None
    ]
    items = [element("li", line) for line in lines]
    content = element("ul", *items)
    return sections.section("Not on this page", content) if items else Markup("")
