"""`mlxdist test`: does it all work on these machines?"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from mlxdist.doctor import selftest as trial
from mlxdist.launcher.hosts import assign_ranks

from .options import add_hosts, hosts_of, job_options, network_of, positive

_DESCRIPTION = """\
Train a tiny model on these machines, in about a minute, and compare: with one process,
sharded with replicated, and after a rank was killed and a checkpoint loaded. Exits with
0 only if all is as it should be.
"""

_EPILOG = """\
examples:
  mlxdist test -n 2
  mlxdist test -H mac1,mac2
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "test",
        help="train a tiny model on these machines and check the result",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "-n",
        type=positive,
        metavar="N",
        help="how many ranks (default: as many as the hosts have slots, or 2)",
    )
    add_hosts(parser)
    parser.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.markup import escape

    named = hosts_of(parsed)
    hosts = named.hosts
    ranks = parsed.n or sum(host.slots for host in hosts) or 2
    places = assign_ranks(hosts, ranks) if hosts else []
    options = ["-n", str(ranks), *job_options(named, network_of(parsed, hosts))]
    if hosts:
        options += ["-H", ",".join(map(str, hosts))]
    console = Console(highlight=False, file=sys.stdout)
    tried = []
    for one in trial.trials(ranks, options, places):
        tried.append(one)
        sign = "[green]ok    [/]" if one.passed else "[red]FAILED[/]"
        console.print(
            f"{sign} {one.name:<26} {one.seconds:4.1f} s   {escape(one.found)}",
            soft_wrap=True,
        )
    failed = [one.name for one in tried if not one.passed]
    names = ",".join(host.name for host in hosts)
    if trial.COMES_UP in failed:
        where = f"over {names}" if hosts else "on this machine"
        console.print(f"\nNo job comes up {where}; nothing else was tried.")
    if failed:
        doctor = f"mlxdist doctor -H {names}" if hosts else "mlxdist doctor"
        console.print(f"\n`{doctor}` may tell why.", soft_wrap=True)
    return int(bool(failed))
