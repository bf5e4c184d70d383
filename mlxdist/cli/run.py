"""`mlxdist run`: N ranks of a script, on this machine or on several."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from typing import Any

from mlxdist.launcher import hosts, restarts
from mlxdist.launcher import runner as launcher
from mlxdist.launcher.spec import Job

from .options import add_hosts, count, hosts_of, network_of, positive, seconds

_DESCRIPTION = """\
Run N ranks of a script with mpirun, on this machine or on several. Finds the Open MPI
that mlxdist uses, shares the cores among the ranks, and exits with 0 only if every
rank finished.
"""

_EPILOG = """\
examples:
  mlxdist run -n 2 train.py --steps 100
  mlxdist run -n 4 --label -m mypackage.train
  mlxdist run -H mac1:2,mac2:2 --log-dir logs train.py

Options of mlxdist come before the script; all that follows it is the script's own.
Rank 0 can read from a terminal; input from a pipe or a file doesn't reach the ranks.
Hosts need ssh without a password, and the same Python, mlxdist and script at the same
paths: `mlxdist doctor -H mac1,mac2` checks it.
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "run",
        help="run N ranks of a script, on this machine or on several",
        usage="mlxdist run [-n N] [-H HOSTS] [OPTION ...] [-m] SCRIPT [ARGUMENT ...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "-n",
        type=positive,
        metavar="N",
        help="how many ranks (default: as many as the hosts have slots)",
    )
    add_hosts(parser)
    _add_rank_options(parser)
    _add_job_options(parser)
    parser.add_argument(
        "--max-restarts",
        type=count,
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


def _add_rank_options(parser: Any) -> None:
    parser.add_argument(
        "--threads",
        type=positive,
        metavar="T",
        help="CPU threads of each rank (default: a machine's cores divided by its "
        "ranks, unless OMP_NUM_THREADS and its like are set)",
    )
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="an environment variable for the ranks; without a value, as it is here",
    )
    parser.add_argument(
        "--cwd", metavar="FOLDER", help="the ranks' folder (default: this one)"
    )
    parser.add_argument(
        "--python",
        metavar="PATH",
        help="the ranks' interpreter (default: the one of this command)",
    )


def _add_job_options(parser: Any) -> None:
    parser.add_argument(
        "--timeout",
        type=seconds,
        metavar="SECONDS",
        help="end the job after that time, with exit code 124; each start of it, with "
        "--max-restarts",
    )
    parser.add_argument(
        "--label", action="store_true", help="begin each line with its rank: [rank 1]"
    )
    parser.add_argument(
        "--log-dir",
        type=Path,
        metavar="FOLDER",
        help="write each rank's output to FOLDER/rank-R.log as well",
    )
    parser.add_argument(
        "--timeline",
        type=Path,
        metavar="FILE",
        help="write when each rank was in which call and collective, as a Chrome trace "
        "(ui.perfetto.dev)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print mpirun's command line and exit"
    )
    parser.add_argument(
        "--mpi-arg",
        action="append",
        default=[],
        metavar="WORDS",
        help="more words for mpirun: --mpi-arg='--mca btl_tcp_links 2'",
    )


def _run(parsed: argparse.Namespace) -> int:
    job = job_of(parsed)
    if parsed.dry_run:
        print(launcher.dry_run(job))
        return 0
    return restarts.launch_again(job, parsed.max_restarts)


def job_of(parsed: argparse.Namespace) -> Job:
    """The job that the options describe.

    Raises:
        ValueError: where one of them is not what it should be.
    """
    first, *rest = parsed.command_line
    if first == "--" and rest:  # it may stand before the script, as everywhere
        first, *rest = rest
    named = hosts_of(parsed)
    slots = sum(host.slots for host in named.hosts)
    if not (parsed.n or slots):
        raise ValueError("how many ranks? Give -n N, or hosts with -H or --hostfile")
    return Job(
        ranks=parsed.n or slots,
        script=first,
        arguments=tuple(rest),
        module=parsed.module,
        label=parsed.label,
        threads=parsed.threads,
        hosts=named.hosts,
        interface=network_of(parsed, named.hosts),
        variables=(*named.variables, *map(_variable, parsed.env)),
        cwd=parsed.cwd,
        python=parsed.python,
        timeout=parsed.timeout,
        log_dir=parsed.log_dir,
        timeline=parsed.timeline,
        mpi_arguments=_mpi_words(parsed.mpi_arg),
    )


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        hosts.check_variable(name, "")
        if name not in os.environ:
            raise ValueError(f"--env {name}: it is not set here; give --env {name}=...")
        value = os.environ[name]
    return hosts.check_variable(name, value)


def _mpi_words(given: list[str]) -> tuple[str, ...]:
    try:
        words = tuple(word for text in given for word in shlex.split(text))
    except ValueError as error:
        raise ValueError(f"--mpi-arg {given}: {error}") from None
    if ":" in words:  # it would begin another program
        raise ValueError("--mpi-arg: found ':', which separates programs")
    return words
