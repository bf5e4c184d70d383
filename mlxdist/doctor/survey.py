"""Asks each host about itself, and runs a small job over all of them.

Each host is asked over ssh by itself, and not by mpirun over all, so that one that
fails is told apart from the others.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..launcher import command, network, probe
from ..launcher.hosts import Host
from . import subjob as small_job

_PATIENCE = 60.0  # seconds for a host's answer
_LINK_PATIENCE = 120.0  # for a job over a few hosts
_PER_HOST = 3.0  # and more for each


def examine(hosts: Sequence[Host], python: str) -> dict[str, dict[str, Any]]:
    """What each host says of itself, by name: probe.collect, or {"error": why}.

    And whether it is this machine, as "here".
    """
    if not hosts:
        return {"localhost": ask("localhost", python, [], local=True) | {"here": True}}
    local = network.local_addresses()
    names = [host.name for host in hosts]

    def one(host: Host) -> dict[str, Any]:
        others = [name for name in names if name != host.name]
        here = network.is_local(host, local)
        return ask(host.name, python, others, local=here) | {"here": here}

    with ThreadPoolExecutor(max_workers=min(32, len(hosts))) as pool:
        return dict(zip(names, pool.map(one, hosts), strict=True))


def ask(name: str, python: str, peers: list[str], *, local: bool) -> dict[str, Any]:
    """One host's answer, or {"error": the last line that ssh or Python said}."""
    words = [python, "-", *peers]
    if not local:
        remote = shlex.join(words)  # ssh gives it to the login shell there
        words = [*command.ssh_command(), name, remote]
    try:
        done = subprocess.run(
            words,
            input=probe.source(),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {_PATIENCE:.0f} s"}
    except OSError as error:
        return {"error": f"{words[0]}: {error.strerror}"}
    for line in done.stdout.splitlines():
        if line.startswith(probe.MARK):
            return dict(json.loads(line.removeprefix(probe.MARK)))
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return {"error": said[-1] if said else f"exit code {done.returncode}"}


def try_links(hosts: Sequence[Host], options: Sequence[str]) -> Mapping[str, Any]:
    """A job of a rank on each host, or of two on this machine: see links.main.

    Returns:
        Its findings, or {"error": why, "command": what shows all that it says}.
    """
    slots = 2 if len(hosts) == 1 else 1
    where = ",".join(f"{host.name}:{slots}" for host in hosts)
    options = [*options, *(["-H", where] if hosts else ["-n", "2"])]
    patience = _LINK_PATIENCE + _PER_HOST * len(hosts)
    ended = small_job.run(options, "mlxdist.doctor.link_job", patience=patience)
    if ended.code or not ended.told:
        command = shlex.join(
            ["mlxdist", "run", *options, "-m", "mlxdist.doctor.link_job"]
        )
        return {"error": ended.said, "command": command}
    return ended.told
