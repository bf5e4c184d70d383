"""`mlxdist run`: N ranks of a script on this machine."""

from __future__ import annotations

import argparse
from typing import Any

from mlxdist import launcher, restarts

_DESCRIPTION = """\
Run N ranks of a script on this machine with mpirun. Finds the Open MPI that mlxdist
uses, shares the cores among the ranks, and exits with 0 only if every rank finished.
"""

_EPILOG = """\
examples:
  mlxdist run -n 2 train.py --steps 100
  mlxdist run -n 4 --label -m mypackage.train

Options of mlxdist come before the script; all that follows it is the script's own.
Rank 0 can read from a terminal; input from a pipe or a file doesn't reach the ranks.
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "run",
        help="run N ranks of a script on this machine",
        usage="mlxdist run -n N [OPTION ...] [-m] SCRIPT [ARGUMENT ...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "-n", type=positive, required=True, metavar="N", help="how many ranks"
    )
    parser.add_argument(
        "--label", action="store_true", help="begin each line with its rank: [rank 1]"
    )
    parser.add_argument(
        "--threads",
        type=positive,
        metavar="T",
        help="CPU threads of each rank (default: the cores divided by N, unless "
        "OMP_NUM_THREADS and its like are set)",
    )
    parser.add_argument(
        "--max-restarts",
        type=positive,
        default=0,
        metavar="K",
        help="start the job again, up to K times, where a rank fails; the script then "
        "finds world.restarts above 0 and loads its last checkpoint",
    )
    parser.add_argument(
        "-m", action="store_true", dest="module", help="SCRIPT is a module's name"
    )
    parser.add_argument(
        "command_line",
        nargs=argparse.PARSER,  # one, and whatever follows it
        metavar="SCRIPT",
        help="path of a Python script, and its own arguments",
    )
    parser.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> int:
    first, *rest = parsed.command_line
    if first == "--" and rest:  # it may stand before the script, as everywhere
        first, *rest = rest
    job = launcher.Job(
        ranks=parsed.n,
        script=first,
        arguments=tuple(rest),
        module=parsed.module,
        label=parsed.label,
        threads=parsed.threads,
    )
    return restarts.launch_again(job, parsed.max_restarts)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted 1 or more")
    return int(text)
