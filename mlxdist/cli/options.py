"""Options that several commands have, and what their values may be."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlxdist.launcher import hosts, network
from mlxdist.launcher.hosts import Host


def add_hosts(parser: Any) -> None:
    """The options that name machines."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "-H",
        dest="hosts",
        metavar="HOST[:SLOTS],...",
        help="machines, and how many ranks each takes (default: 1); one that is named "
        "twice takes twice as many, as with mpirun",
    )
    which.add_argument(
        "--hostfile",
        type=Path,
        metavar="FILE",
        help="the same in a file: Open MPI's (`mac1 slots=2`), or MLX's JSON",
    )
    parser.add_argument(
        "--iface",
        metavar="NAME",
        help="network for MPI: an interface of this machine, or 10.0.0.0/24 (default: "
        "Thunderbolt before Ethernet before Wi-Fi, of those that reach all hosts)",
    )


def hosts_of(parsed: argparse.Namespace) -> hosts.HostList:
    """What -H or --hostfile named; no host where neither was given.

    Says so where a host was named twice: it may be another one's name by mistake.
    """
    if parsed.hosts is not None:
        found = hosts.parse_hosts(parsed.hosts)
    elif parsed.hostfile is not None:
        wanted = "a file with lines such as `mac1 slots=2`, or MLX's JSON"
        with read_for("--hostfile", wanted):
            found = hosts.read_hosts(parsed.hostfile)
    else:
        return hosts.HostList()
    slots = {host.name: host.slots for host in found.hosts}
    for name, times in found.repeated:
        print(
            f"mlxdist: warning: {name} is named {times} times, and takes {slots[name]} "
            f"ranks; if this is intended, name it once, as {name}:{slots[name]}",
            file=sys.stderr,
            flush=True,
        )
    return found


def network_of(parsed: argparse.Namespace, named: Sequence[Host]) -> str | None:
    """The network that --iface names, by itself or by this machine's interface.

    Raises:
        ValueError: there is none such, or nothing is sent between hosts.
    """
    if parsed.iface is None:
        return None
    if not named:
        raise ValueError("--iface is for several hosts: give -H or --hostfile")
    return network.resolve_network(parsed.iface)


def job_options(named: hosts.HostList, asked: str | None) -> list[str]:
    """Those of `mlxdist run` by which a small job takes the way that a user's takes.

    The network is found here, unless it is `asked` for, since -H tells no addresses, as
    a host file may.
    """
    choice = asked or network.mpi_network(named.hosts, None)
    options = ["--iface", choice] if choice is not None else []
    for name, value in named.variables:
        options += ["--env", f"{name}={value}"]
    return options


@contextmanager
def read_for(option: str, wanted: str) -> Iterator[None]:
    """Has a file that can't be read told as a ValueError that names the option."""
    try:
        yield
    except OSError as error:
        found = f"{option} {error.filename}: {error.strerror}"
        raise ValueError(f"{found}; wanted {wanted}") from None


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted 1 or more")
    return int(text)


def count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted 0 or more")
    return int(text)


def seconds(text: str) -> float:
    try:
        if 0 < float(text) < float("inf"):
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"found {text!r}, wanted a number above 0")
