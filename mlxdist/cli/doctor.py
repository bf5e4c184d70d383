"""`mlxdist doctor`: what is wrong with the machines, or with a job that died."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlxdist.doctor import diagnosis as findings
from mlxdist.doctor import survey as examine
from mlxdist.doctor.diagnosis import Finding, Level
from mlxdist.launcher import preflight

from .options import add_hosts, hosts_of, job_options, network_of

_DESCRIPTION = """\
Look for what would stop or slow a job on this machine, or on several: versions, MPI,
ssh, names, networks, memory. Tells how to mend what it finds, and exits with 1 where
something would stop the job. With --postmortem, read what a job wrote when it died.
"""

_EPILOG = """\
examples:
  mlxdist doctor
  mlxdist doctor -H mac1,mac2
  mlxdist doctor --hostfile hosts.json --json
  mlxdist doctor --postmortem mlxdist-postmortem/20260131-120000-4711
"""

_SIGNS = {"ok": "[green]ok", "warning": "[yellow]warning", "failure": "[red]FAILURE"}


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="say what is wrong with the machines, or with a job that died",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_hosts(parser)
    parser.add_argument(
        "--python",
        default=sys.executable,
        metavar="PATH",
        help="the interpreter on all hosts (default: the one of this command)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the findings as JSON"
    )
    parser.add_argument(
        "--postmortem",
        type=Path,
        metavar="FOLDER",
        help="the folder that a job named when it died, mlxdist-postmortem/...",
    )
    parser.set_defaults(run=_run)


def _run(parsed: argparse.Namespace) -> int:
    if parsed.postmortem is not None:
        from mlxdist.world import postmortem

        print(postmortem.report(parsed.postmortem))
        return 0
    found, links = _look(parsed)
    if parsed.json:
        ok = all(one.level != "failure" for one in found)
        told = [asdict(one) for one in found]
        print(json.dumps({"ok": ok, "findings": told, "links": links}, indent=1))
    else:
        _print_table(found)
    return int(any(one.level == "failure" for one in found))


def _look(parsed: argparse.Namespace) -> tuple[list[Finding], Mapping[str, Any]]:
    named = hosts_of(parsed)
    hosts = named.hosts
    network = network_of(parsed, hosts)
    python = preflight.find_python(parsed.python, remote=bool(hosts))
    answers = examine.examine(hosts, python)
    found = list(findings.findings(answers, python, network))
    if any(one.level == "failure" for one in found):
        return found, {}  # a job over these hosts would fail, or give wrong numbers
    options = [*job_options(named, network), "--python", python]
    names = [host.name for host in hosts] if len(hosts) > 1 else ["rank 0", "rank 1"]
    links = examine.try_links(hosts, options)
    return found + list(findings.of_links(links, names)), links


def _print_table(found: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", "check", "host", "found"):
        table.add_column(name, overflow="fold")
    for one in _together(found):
        table.add_row(_SIGNS[one.level], one.check, one.host, escape(one.found))
    console = Console(highlight=False)
    console.print(table)
    bad = [one for one in found if one.level != "ok"]
    for one in bad:
        where = f" on {one.host}" if one.host else ""
        console.print(f"\n{_SIGNS[one.level]}[/] {one.check}{where}: mend it with")
        console.print(f"    {escape(one.mend)}", soft_wrap=True)
    if not bad:
        console.print("\nNothing is wrong.")


def _together(found: Sequence[Finding]) -> list[Finding]:
    """Hosts that say the same in one row, in the order of the checks."""
    rows: dict[tuple[str, str, Level], list[str]] = {}
    first = {one.check: number for number, one in reversed(list(enumerate(found)))}
    for one in sorted(found, key=lambda one: first[one.check]):
        rows.setdefault((one.check, one.found, one.level), []).append(one.host)
    hosts = len({one.host for one in found} - {""})
    return [
        Finding(
            check,
            "all" if hosts == len(who) > 1 else ", ".join(who),
            what,
            level,
        )
        for (check, what, level), who in rows.items()
    ]
