"""`mlxdist bench`: lists the benchmarks, and runs one."""

from __future__ import annotations

import argparse
from typing import Any

from mlxdist.cli import bench_runner as bench

from .options import positive

_DESCRIPTION = """\
Without a name, lists the questions that benchmarks/ answers. With one, runs that
script, on as many ranks as it wants unless -n says otherwise.
"""

_EPILOG = """\
examples:
  mlxdist bench
  mlxdist bench step --help
  mlxdist bench step --quick --json step.json

What follows the name is the benchmark's own.
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="measure it on this machine",
        usage="mlxdist bench [-n N] [NAME [ARGUMENT ...]]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "-n", type=positive, metavar="N", help="ranks, where all of them run the script"
    )
    parser.add_argument(
        "command_line",
        nargs=argparse.REMAINDER,
        metavar="NAME",
        help="which benchmark, and its own arguments",
    )
    parser.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> int:
    if parsed.command_line:
        name, *arguments = parsed.command_line
        return bench.run(name, arguments, ranks=parsed.n)
    from rich.console import Console  # which other commands have no use for
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    for each in bench.list_benchmarks(bench.find_folder()):
        table.add_row(each.name, each.question)
    Console(highlight=False).print(table)
    return 0
