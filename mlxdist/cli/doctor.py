"""`mlxdist doctor`: check the machines, or explain why a job died."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..doctor import Finding, LinkReport, diagnosis, survey
from ..launcher import environment, preflight
from ..launcher.visible_text import message_of, visible
from .options import Commands, add_command, add_hosts, hosts_of, job_options, network_of
from .plain_text import plain

_DESCRIPTION = """\
Look for what would stop or slow a job on this machine, or on several: versions, MPI,
ssh, names, networks, memory. Prints a remedy for each problem, and exits with 1 if one
of them would stop the job. With --postmortem, explain why a job died.
"""

_EPILOG = """\
examples:
  mlxdist doctor
  mlxdist doctor -H mac1,mac2
  mlxdist doctor --hostfile hosts.json --json
  mlxdist doctor --postmortem
  mlxdist doctor --postmortem mlxdist-postmortem/20260131-120000-4711
"""

_SIGNS = {"ok": "[green]ok", "warning": "[yellow]warning", "failure": "[red]FAILURE"}


def add_parser(commands: Commands) -> None:
    parser = add_command(
        commands,
        "doctor",
        run=_run,
        usage="mlxdist doctor [-H HOSTS] [OPTION ...]",
        help="find what is wrong with the machines, or why a job died",
        description=_DESCRIPTION,
        epilog=_EPILOG,
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
        nargs="?",
        const=environment.postmortem_folder(),
        metavar="FOLDER",
        help="explain why a job died: the folder that it named, or one with the "
        "folders of several jobs, of which the newest counts (default: "
        "mlxdist-postmortem)",
    )


def _run(parsed: argparse.Namespace) -> int:
    if parsed.postmortem is not None:
        from ..world import postmortem

        _refuse_other_options(parsed)
        print(message_of(postmortem.report(parsed.postmortem)))
        return 0
    findings, links = _examine(parsed)
    failed = any(finding.level == "failure" for finding in findings)
    if parsed.json:
        rows = [_to_json(finding) for finding in findings]
        print(
            json.dumps({"ok": not failed, "findings": rows, "links": links}, indent=1)
        )
    else:
        _print_table(findings)
    return int(failed)


def _refuse_other_options(parsed: argparse.Namespace) -> None:
    """Raise ValueError if an option was given that --postmortem has no use for."""
    given = {
        "--json": parsed.json,
        "-H": parsed.hosts,
        "--hostfile": parsed.hostfile,
        "--iface": parsed.iface,
    }
    unused = [option for option, value in given.items() if value]
    if unused:
        raise ValueError(f"--postmortem reads a folder here: leave out {unused[0]}")


def _examine(parsed: argparse.Namespace) -> tuple[list[Finding], LinkReport]:
    """Return the findings on the hosts, and on the links between them.

    The links are measured by a job, which is not started over hosts that would fail it.
    """
    named = hosts_of(parsed)
    network = network_of(parsed, named.hosts)
    python = preflight.find_python(parsed.python, remote=bool(named.hosts))
    answers = survey.ask_hosts(named.hosts, python)
    findings = list(diagnosis.diagnose(answers, python, network, named))
    if any(finding.level == "failure" for finding in findings):
        return findings, {}
    options = [*job_options(named, network), "--python", python]
    links = survey.measure_links(named.hosts, options)
    names = [host.name for host in named.hosts]
    ranks = names if len(names) > 1 else ["rank 0", "rank 1"]
    return [*findings, *diagnosis.diagnose_links(links, ranks)], links


def _to_json(finding: Finding) -> dict[str, str]:
    """Return the finding under the keys that `mlxdist doctor --json` documents."""
    return {
        "check": finding.check,
        "host": finding.host,
        "found": finding.message,
        "level": finding.level,
        "mend": finding.remedy,
    }


def _print_table(findings: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", "check", "host", "found"):
        table.add_column(name, overflow="fold")
    for row in merge_rows(findings):
        table.add_row(_SIGNS[row.level], row.check, plain(row.host), plain(row.message))
    console = Console(highlight=False)
    console.print(table)
    problems = [finding for finding in findings if finding.level != "ok"]
    for problem in problems:
        sign = _SIGNS[problem.level]
        where = f" on {plain(visible(problem.host))}" if problem.host else ""
        console.print(f"\n{sign}[/] {problem.check}{where}: fix it with")
        console.print(f"    {plain(problem.remedy)}", soft_wrap=True)
    if not problems:
        console.print("\nNo problem was found.")


def merge_rows(findings: Sequence[Finding]) -> list[Finding]:
    """Merge hosts with equal findings into one row, in the order of the checks."""
    rows: dict[Finding, list[str]] = {}
    order = {f.check: index for index, f in reversed(list(enumerate(findings)))}
    for finding in sorted(findings, key=lambda finding: order[finding.check]):
        rows.setdefault(replace(finding, host="", remedy=""), []).append(finding.host)
    number = len({finding.host for finding in findings} - {""})
    return [
        replace(row, host="all" if number == len(hosts) > 1 else ", ".join(hosts))
        for row, hosts in rows.items()
    ]
