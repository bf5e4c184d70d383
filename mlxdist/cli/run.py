"""`mlxdist run`: N ranks of a script, on this machine or on several."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from ..launcher import data_plane, environment, hosts, preflight, runner
from ..launcher.job_spec import Job
from ..launcher.standard_streams import print_error
from .options import (
    Commands,
    add_command,
    add_hosts,
    count,
    hosts_of,
    network_of,
    positive,
    seconds,
)

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

Options of mlxdist come before the script; everything after it belongs to the script.
Rank 0 can read from a terminal; input from a pipe or a file doesn't reach the ranks.
Hosts need ssh without a password, and the same Python, mlxdist and script at the same
paths: `mlxdist doctor -H mac1,mac2` checks it.
"""


def add_parser(commands: Commands) -> None:
    """Add the command `run` to `commands`."""
    parser = add_command(
        commands,
        "run",
        run=_run,
        help="run N ranks of a script, on this machine or on several",
        usage="mlxdist run [-n N] [-H HOSTS] [OPTION ...] [-m] SCRIPT [ARGUMENT ...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument(
        "-n",
        type=positive,
        metavar="N",
        help="how many ranks (default: as many as the hosts have slots)",
    )
    add_hosts(parser)
    parser.add_argument(
        "--backend",
        choices=data_plane.CHOICES,
        default="auto",
        help="MLX's backend for gradients and parameters; MPI stays the control plane "
        "(default: auto, the host file's, or MLXDIST_BACKEND, or mpi)",
    )
    _add_rank_options(parser)
    _add_job_options(parser)
    parser.add_argument(
        "--max-restarts",
        type=count,
        default=0,
        metavar="K",
        help="start the job again, up to K times, if a rank fails, but not after exit "
        "code 2, a wrong command line; world.restarts is above 0 then, and the script "
        "can load its last checkpoint",
    )
    parser.add_argument(
        "-m", action="store_true", dest="module", help="SCRIPT is a module's name"
    )
    parser.add_argument(
        "command_line",
        nargs=argparse.PARSER,  # the script, and everything after it
        metavar="SCRIPT",
        help="path of a Python script, and its own arguments",
    )


def _add_rank_options(parser: argparse.ArgumentParser) -> None:
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


def _add_job_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout",
        type=seconds,
        metavar="SECONDS",
        help="end the job after that time, with exit code 124; with --max-restarts, "
        "the limit of each start",
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
        help="write a Chrome trace of each rank's calls and collectives "
        "(ui.perfetto.dev)",
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help="write how the job ended, with the state of each rank, as JSON",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print mpirun's command line and exit"
    )
    parser.add_argument(
        "--mpi-arg",
        action="append",
        default=[],
        metavar="WORDS",
        help="more arguments for mpirun: --mpi-arg='--mca btl_tcp_links 2'",
    )


def _run(parsed: argparse.Namespace) -> int:
    job = job_of(parsed)
    if parsed.report is not None:
        preflight.check_file("--report", parsed.report)
    if parsed.dry_run:
        print(runner.dry_run(job))
        return 0
    if parsed.report is not None:  # of an earlier job
        parsed.report.unlink(missing_ok=True)
    outcome = runner.launch(job, max_restarts=parsed.max_restarts)
    if parsed.report is not None:
        try:
            outcome.write(parsed.report)
        except OSError as error:  # a full disk; the outcome of the job counts
            reason = f"--report {parsed.report}: {error.strerror}"
            print_error(f"mlxdist: error: {reason}")
            return outcome.exit_code or 2
    return outcome.exit_code


def job_of(parsed: argparse.Namespace) -> Job:
    """Return the job that the options describe.

    Raises:
        ValueError: the value of an option is invalid.
    """
    script, *arguments = parsed.command_line
    if script == "--" and arguments:  # as in other programs, it may end the options
        script, *arguments = arguments
    named = hosts_of(parsed)
    slots = sum(host.slots for host in named.hosts)
    if not (parsed.n or slots):
        raise ValueError("how many ranks? Give -n N, or hosts with -H or --hostfile")
    if not named.hosts and parsed.n > hosts.MAX_SLOTS:
        raise ValueError(f"-n {parsed.n}: wanted at most {hosts.MAX_SLOTS} ranks")
    backend, ring = _backend_of(parsed, named)
    return Job(
        ranks=parsed.n or slots,
        script=script,
        arguments=tuple(arguments),
        module=parsed.module,
        label=parsed.label,
        threads=parsed.threads,
        hosts=named.hosts,
        interface=network_of(parsed, named.hosts),
        backend=backend,
        variables=(*named.variables, *ring, *map(_variable, parsed.env)),
        cwd=parsed.cwd,
        python=parsed.python,
        timeout=parsed.timeout,
        log_dir=parsed.log_dir,
        timeline=parsed.timeline,
        mpi_arguments=_mpi_arguments(parsed.mpi_arg),
    )


def _backend_of(
    parsed: argparse.Namespace, named: hosts.HostList
) -> tuple[str | None, tuple[tuple[str, str], ...]]:
    """Return the backend for data, and the variables by which MLX takes a ring of it.

    That of `--backend` comes before the host file's, and that before the user's
    MLXDIST_BACKEND.
    """
    chosen: str | None = parsed.backend
    if chosen == "auto":
        chosen = named.backend or environment.chosen_backend()
    if chosen is None or chosen == data_plane.RING_OF_JACCL:
        return chosen, (("JACCL_RING", "1"),) if chosen else ()
    return data_plane.check_backend(chosen, environment.BACKEND), ()


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        hosts.check_variable(name, "")
        current = environment.get(name)
        if current is None:
            raise ValueError(f"--env {name}: it is not set here; give --env {name}=...")
        value = current
    return hosts.check_variable(name, value)


def _mpi_arguments(values: list[str]) -> tuple[str, ...]:
    try:
        arguments = tuple(word for value in values for word in shlex.split(value))
    except ValueError as error:
        raise ValueError(f"--mpi-arg {values}: {error}") from None
    if ":" in arguments:
        raise ValueError("--mpi-arg: found ':', which separates programs")
    return arguments
