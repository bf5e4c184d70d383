"""`mlxdist test`: train a tiny model on these machines and check the result."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ..doctor import selftest
from ..launcher.hosts import Host, assign_ranks
from .options import (
    Commands,
    add_command,
    add_hosts,
    hosts_of,
    job_options,
    network_of,
    positive,
)
from .plain_text import plain

_DESCRIPTION = """\
Train a tiny model on these machines, in about a minute, and compare the result: with
one process, sharded with replicated state, and after a rank was killed and a checkpoint
loaded. Exits with 0 only if all results are as expected.
"""

_EPILOG = """\
examples:
  mlxdist test -n 2
  mlxdist test -H mac1,mac2
"""


def add_parser(commands: Commands) -> None:
    parser = add_command(
        commands,
        "test",
        run=_run,
        usage="mlxdist test [OPTION ...]",
        help="train a tiny model on these machines and check the result",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument(
        "-n",
        type=positive,
        metavar="N",
        help="number of ranks (default: the sum of the hosts' slots, or 2)",
    )
    add_hosts(parser)


def _run(parsed: argparse.Namespace) -> int:
    from rich.console import Console

    named = hosts_of(parsed)
    hosts = named.hosts
    ranks = parsed.n or sum(host.slots for host in hosts) or 2
    host_of_rank = assign_ranks(hosts, ranks) if hosts else []
    options = ["-n", str(ranks), *job_options(named, network_of(parsed, hosts))]
    if parsed.hostfile is not None:  # it may have a backend, and its devices
        options += ["--hostfile", os.path.abspath(parsed.hostfile)]
    elif hosts:
        options += ["-H", ",".join(map(str, hosts))]
    console = Console(highlight=False, file=sys.stdout)
    failed = []
    for result in selftest.results(ranks, options, host_of_rank):
        if not result.passed:
            failed.append(result.name)
        sign = "[green]ok    [/]" if result.passed else "[red]FAILED[/]"
        console.print(
            f"{sign} {result.name:<26} {result.seconds:4.1f} s   "
            f"{plain(result.message)}",
            soft_wrap=True,
        )
    if failed:
        console.print(_advice(failed, hosts), soft_wrap=True)
    return int(bool(failed))


def _advice(failed: Sequence[str], hosts: Sequence[Host]) -> str:
    """Return what to do after a failure."""
    names = ",".join(host.name for host in hosts)
    doctor = f"mlxdist doctor -H {names}" if hosts else "mlxdist doctor"
    advice = f"\n`{doctor}` may find the cause."
    if selftest.STARTS in failed:
        where = f"over {names}" if hosts else "on this machine"
        return f"\nNo job starts {where}; nothing else was tried.\n{advice}"
    return advice
