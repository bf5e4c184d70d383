"""`mlxdist report`: where the time of a run went, and one HTML page of it."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..launcher import preflight
from ..launcher.standard_streams import print_error
from ..launcher.visible_text import visible
from .options import Commands, add_command
from .plain_text import plain

if TYPE_CHECKING:
    from ..report import Breakdown

_DESCRIPTION = """\
Print where the time of a run went, and write an HTML page with its losses, speed and
memory, what each rank waited for, how the job ended, and its configuration.

RUN is a folder. Each of its files may be missing:
  metrics.jsonl  of mlxdist.trackers.RunLog
  run.json       of mlxdist.trackers.RunLog
  timeline.json  of `mlxdist run --timeline RUN/timeline.json`
  failure.json   of `mlxdist run --report RUN/failure.json`

With several folders, the page compares the runs: losses, speed, memory, and what
differs in their configurations.
"""

_EPILOG = """\
examples:
  mlxdist run -n 2 --timeline runs/lm/timeline.json train.py
  mlxdist report runs/lm
  mlxdist report runs/lm --output lm.html
  mlxdist report runs/a runs/b
"""


def add_parser(commands: Commands) -> None:
    """Add the command `report` to `commands`."""
    parser = add_command(
        commands,
        "report",
        run=_run,
        help="show where the time of a run went, and write a page of it",
        usage="mlxdist report RUN [RUN ...] [--output FILE]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="RUN", help="folder of a run"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the page (default: RUN/report.html; comparison.html for several)",
    )


def _run(parsed: argparse.Namespace) -> int:
    from .. import report

    folders: list[Path] = parsed.folders
    is_one = len(folders) == 1
    different = {folder.resolve() for folder in folders}
    if len(folders) > report.MOST_RUNS or len(different) < len(folders):
        raise ValueError(
            f"found {len(folders)} folders, {len(different)} of them different; wanted "
            f"up to {report.MOST_RUNS} different ones"
        )
    runs = {str(folder): report.read_run(folder) for folder in folders}
    default = folders[0] / report.PAGE if is_one else Path("comparison.html")
    output: Path = parsed.output or default
    preflight.check_file("--output", output)
    if is_one:
        (run,) = runs.values()
        report.write_page(run, output)
        if run.breakdown is not None:
            _show(run.breakdown)
        for line in run.missing:
            print(visible(line))
    else:
        report.write_comparison(runs, output)
        _show_rows(("", *runs), report.number_rows(runs))
    for line in (line for run in runs.values() for line in run.problems):
        print_error(f"mlxdist: warning: {visible(line)}")
    print(visible(f"page: {output}"))
    return 0


def _show_rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in head:  # whole: long names may differ at their end
        table.add_column(plain(name), overflow="fold")
    for row in rows:
        table.add_row(*map(plain, row))
    Console(highlight=False).print(table)


def _show(breakdown: Breakdown) -> None:
    """Print the parts of each rank's time."""
    from rich.console import Console
    from rich.table import Table

    from .. import report

    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    for name in ("rank", "host", "time", *report.PARTS):
        table.add_column(name, justify="left" if name == "host" else "right")
    for rank in breakdown.ranks:
        shares = [report.share(rank.parts[name], rank.wall) for name in report.PARTS]
        row = [str(rank.rank), rank.host, report.duration(rank.wall), *shares]
        table.add_row(*map(plain, row))
    if len(breakdown.ranks) > 1:
        parts, wall = breakdown.parts, breakdown.wall
        shares = [report.share(parts[name], wall) for name in report.PARTS]
        table.add_row("all", "", "", *shares)
    console.print(table)
    for sentence in report.sentences(breakdown):
        console.print(plain(visible(sentence)))
