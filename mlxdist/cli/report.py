"""`mlxdist report`: where the time of a run went, and one HTML page of it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

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
"""

_EPILOG = """\
examples:
  mlxdist run -n 2 --timeline runs/lm/timeline.json train.py
  mlxdist report runs/lm
  mlxdist report runs/lm --output lm.html
"""


def add_parser(commands: Commands) -> None:
    """Add the command `report` to `commands`."""
    parser = add_command(
        commands,
        "report",
        run=_run,
        help="show where the time of a run went, and write a page of it",
        usage="mlxdist report RUN [--output FILE]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the page (default: RUN/report.html)",
    )


def _run(parsed: argparse.Namespace) -> int:
    from .. import report

    run = report.read_run(parsed.folder)
    output: Path = parsed.output or parsed.folder / report.PAGE
    if output.is_dir():
        raise ValueError(f"--output {output} is a folder; name a file")
    report.write_page(run, output)
    if run.breakdown is not None:
        _show(run.breakdown)
    for line in run.missing:
        print(visible(line))
    for line in run.problems:
        print_error(f"mlxdist: warning: {visible(line)}")
    print(visible(f"page: {output}"))
    return 0


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
