"""The output of a benchmark: tables on the terminal, and a JSON file."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mlxdist.launcher import environment as variables
from mlxdist.launcher.private_files import write_atomically

from .environment import command, environment
from .summary import ratio_of, summarize

FILE_WIDTH = 110  # columns of a table that is not printed on a terminal

Result = dict[str, Any]  # a part of the JSON file


def make_console() -> Console:
    """Return a console; under `mlxdist run`, one that knows the user's terminal."""
    terminal = None
    if variables.started_by_mpirun():
        terminal = os.environ.get(variables.TERMINAL) == "1"
    columns = os.environ.get(variables.COLUMNS)
    width = int(columns) if columns else None
    console = Console(force_terminal=terminal, width=width, highlight=False)
    if not console.is_terminal and not width:
        console.width = FILE_WIDTH
    return console


def print_table(
    console: Console,
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    legend: str,
) -> None:
    """Print a table whose first column is text and whose other columns are numbers.

    Args:
        legend: what the columns are, in which units, and whether low or high is better.
    """
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(legend, style="dim")


def format_ratio(ratio: Mapping[str, Any]) -> str:
    """Return a ratio with its interval, such as "0.98 (0.95 to 1.01)"."""
    low, high = ratio["interval"]
    return f"{ratio['ratio']:.3f} ({low:.3f} to {high:.3f})"


def record(
    samples: Mapping[str, Sequence[float]], pairs: Iterable[tuple[str, str]] = ()
) -> Result:
    """Return samples with their summaries, and the ratios of those pairs that exist.

    Args:
        samples: seconds by contender.

    Returns:
        {"summary": {name: Summary}, "ratios": {"a / b": Ratio}, "samples": {name: [s]}}
    """
    ratios = {
        f"{a} / {b}": ratio_of(samples[a], samples[b])
        for a, b in pairs
        if a in samples and b in samples
    }
    return {
        "summary": {n: summarize(s)._asdict() for n, s in samples.items()},
        "ratios": {pair: ratio._asdict() for pair, ratio in ratios.items()},
        "samples": {name: list(values) for name, values in samples.items()},
    }


def write_json(
    path: Path | None,
    description: str,
    result: Mapping[str, Any],
    ranks: int | None = None,
) -> None:
    """Write a result with the environment and the command line, atomically.

    Args:
        path: None writes nothing.
        description: the benchmark's docstring, whose first line is its question.
        ranks: how many ran the script; None where it starts its own jobs.
    """
    if path is None:
        return
    document = {
        "question": description.splitlines()[0],
        "command": command(ranks),
        "environment": environment(),
        **result,
    }
    write_atomically(path, _dump(document) + "\n", mode=0o666)


def draw_result(
    path: Path | None, draw: Callable[..., object], *arguments: object
) -> None:
    """Draw a result that is written to a file, if matplotlib is installed.

    Args:
        draw: takes the path of the result, and the arguments.
    """
    if path is not None:
        with contextlib.suppress(ImportError):
            draw(path, *arguments)


def _dump(value: Any, indent: str = "") -> str:
    """Return JSON with each list on one line, because there are many samples."""
    deeper = indent + " "
    if isinstance(value, Mapping) and value:
        lines = (f"{json.dumps(str(k))}: {_dump(v, deeper)}" for k, v in value.items())
        return "{\n" + ",\n".join(deeper + line for line in lines) + f"\n{indent}}}"
    return json.dumps(value)
