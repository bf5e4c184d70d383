"""Reports of the hosts, over ssh, and of a job over all of them, which measures links.

Each host is asked by a connection of its own instead of by one mpirun over all, so that
a host that fails does not hide the others' answers.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import cast

from ..launcher import mpirun_command, network, probe
from ..launcher.hosts import Host
from . import ssh_errors, subjob
from .reports import Answer, HostReport, LinkReport

_PROBE_TIMEOUT = 60.0  # seconds for a host's answer
_LINK_TIMEOUT = 120.0  # seconds for the link job, and
_LINK_TIMEOUT_PER_HOST = 3.0  # more for each host
_LINK_JOB = "mlxdist.doctor.link_job"


def ask_hosts(hosts: Sequence[Host], python: str) -> list[Answer]:
    """Ask all hosts at the same time, or this machine if there are none.

    Args:
        python: path of the interpreter on the hosts.
    """
    if not hosts:
        return [_ask("localhost", python, [], is_local=True)]
    addresses = network.local_addresses()
    names = [host.name for host in hosts]

    def ask(host: Host) -> Answer:
        peers = [name for name in names if name != host.name]
        is_local = network.is_local(host, addresses)
        return _ask(host.name, python, peers, is_local=is_local)

    with ThreadPoolExecutor(max_workers=min(32, len(hosts))) as pool:
        return list(pool.map(ask, hosts))


def _ask(host: str, python: str, peers: list[str], *, is_local: bool) -> Answer:
    """Run the probe with a host's Python, which reads it from standard input."""
    words = [python, "-", *peers]
    if not is_local:
        remote = shlex.join(words)  # ssh hands it to the login shell there
        words = [*mpirun_command.ssh_command(), host, remote]
    try:
        done = subprocess.run(
            words,
            input=probe.source(),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROBE_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        error = f"no answer within {_PROBE_TIMEOUT:.0f} s"
        return Answer(host, is_local, error=error, problem="unreachable")
    except OSError as failure:
        error = f"{words[0]}: {failure.strerror}"
        problem: ssh_errors.Problem = "no python" if is_local else "no ssh client"
        return Answer(host, is_local, error=error, problem=problem)
    for line in done.stdout.splitlines():
        if line.startswith(probe.MARK):
            report = cast(HostReport, json.loads(line.removeprefix(probe.MARK)))
            return Answer(host, is_local, report)
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    error = lines[-1] if lines else f"exit code {done.returncode}"
    return Answer(host, is_local, error=error, problem=ssh_errors.classify(error))


def measure_links(hosts: Sequence[Host], options: Sequence[str]) -> LinkReport:
    """Run link_job with a rank on each host, or two on this machine.

    Args:
        options: of `mlxdist run`.

    Returns:
        The job's report; if it failed, its error and the command that shows its output.
    """
    slots = 2 if len(hosts) == 1 else 1
    names = ",".join(f"{host.name}:{slots}" for host in hosts)
    options = [*options, *(["-H", names] if hosts else ["-n", "2"])]
    timeout = _LINK_TIMEOUT + _LINK_TIMEOUT_PER_HOST * len(hosts)
    result = subjob.run(options, _LINK_JOB, timeout=timeout)
    if result.code or not result.report:
        line = shlex.join(["mlxdist", "run", *options, "-m", _LINK_JOB])
        return {"error": result.message, "command": line}
    return cast(LinkReport, result.report)
