"""`mlxdist bench`: list the benchmarks of a checkout, or run one. Not in wheels."""

from __future__ import annotations

import argparse

from . import bench_runner
from .options import Commands, add_command, positive

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


def add_parser(commands: Commands) -> None:
    parser = add_command(
        commands,
        "bench",
        run=_run,
        help="measure it on this machine",
        usage="mlxdist bench [-n N] [NAME [ARGUMENT ...]]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument(
        "-n",
        type=positive,
        metavar="N",
        help="number of ranks, for a script that runs on all of them",
    )
    parser.add_argument(
        "command_line",
        nargs=argparse.REMAINDER,
        metavar="NAME",
        help="the benchmark, and its own arguments",
    )


def _run(parsed: argparse.Namespace) -> int:
    if parsed.command_line:
        name, *arguments = parsed.command_line
        return bench_runner.run(name, arguments, ranks=parsed.n)
    from rich.console import Console  # slow to import, and only needed here
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    for benchmark in bench_runner.list_benchmarks(bench_runner.find_folder()):
        table.add_row(benchmark.name, benchmark.question)
    Console(highlight=False).print(table)
    return 0
