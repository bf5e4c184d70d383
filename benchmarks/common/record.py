"""What a benchmark leaves behind: a table on the terminal and a JSON file."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .environment import command, environment
from .summary import ratio_of, summarize

WITHOUT_TERMINAL = 110  # columns of a table that goes to a file


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that every benchmark has."""
    parser.add_argument(
        "--json",
        type=_new_file,
        metavar="FILE",
        help="write all samples and what was run there, and a picture beside it",
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer and smaller cases; rough"
    )
    sys.excepthook = _end_quietly


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"found {text}, wanted at least 1")
    return number


def several(text: str) -> int:
    """A whole number of at least 2, for argparse."""
    if positive(text) < 2:
        raise argparse.ArgumentTypeError(f"found {text}, wanted at least 2")
    return int(text)


def rate(text: str) -> str:
    """What a wire can be shaped to, for argparse."""
    if not re.fullmatch(r"[1-9]\d*(\.\d+)?[kmg]bit", text):
        raise argparse.ArgumentTypeError(f"found {text}, wanted such as 1gbit")
    return text


def _new_file(text: str) -> Path:
    if not Path(text).absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder for {text}")
    return Path(text)


def _end_quietly(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)


def console() -> Console:
    """A console that knows what `mlxdist run` says about the terminal."""
    told = os.environ.get("MLXDIST_TERMINAL") == "1"
    terminal = told if "OMPI_COMM_WORLD_SIZE" in os.environ else None
    columns = os.environ.get("MLXDIST_COLUMNS")
    width = int(columns) if columns else None
    made = Console(force_terminal=terminal, width=width, highlight=False)
    if not made.is_terminal and not width:
        made.width = WITHOUT_TERMINAL
    return made


def print_table(
    out: Console,
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
) -> None:
    """A table whose first column is text and whose others are numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    out.print(table)


def record(
    samples: Mapping[str, Sequence[float]], pairs: Iterable[tuple[str, str]] = ()
) -> dict[str, Any]:
    """Samples in seconds with what they amount to; ratios of the pairs that are there.

    Returns:
        {"summary": {name: Summary}, "ratios": {"a / b": Ratio}, "samples": {name: [s]}}
    """
    ratios = {
        f"{one} / {other}": ratio_of(samples[one], samples[other])
        for one, other in pairs
        if one in samples and other in samples
    }
    return {
        "summary": {n: summarize(s)._asdict() for n, s in samples.items()},
        "ratios": {pair: ratio._asdict() for pair, ratio in ratios.items()},
        "samples": {name: list(values) for name, values in samples.items()},
    }


def write_json(
    path: Path, question: str, result: Mapping[str, Any], ranks: int | None = None
) -> None:
    """Writes a result with the environment and the exact command: whole, or not at all.

    Args:
        ranks: how many ran the script; None where it started its jobs by itself.
    """
    whole = {
        "question": question,
        "command": command(ranks),
        "environment": environment(),
        **result,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(_dump(whole) + "\n")
    beside.replace(path)


def _dump(value: Any, indent: str = "") -> str:
    """JSON with a list of numbers on one line: samples are many."""
    deeper = indent + " "
    if isinstance(value, Mapping) and value:
        lines = (f"{json.dumps(str(k))}: {_dump(v, deeper)}" for k, v in value.items())
        return "{\n" + ",\n".join(deeper + line for line in lines) + f"\n{indent}}}"
    return json.dumps(value)
