"""Commands' parsers, the options that several commands share, and types of options."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from ..launcher import host_files, hosts, network
from ..launcher.hosts import Host, HostList
from ..launcher.standard_streams import print_error

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_command(
    commands: Commands,
    name: str,
    *,
    run: Callable[[argparse.Namespace], int],
    help: str,
    description: str,
    epilog: str,
    usage: str | None = None,
) -> argparse.ArgumentParser:
    """Add the parser of a command, whose line breaks in help texts are kept.

    Args:
        run: runs the command with the parsed arguments and returns its exit code.
    """
    parser = commands.add_parser(
        name,
        help=help,
        usage=usage,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run, refuse=parser.error)
    return parser


def add_hosts(parser: argparse.ArgumentParser) -> None:
    """Add the options that name machines: -H, --hostfile and --iface."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "-H",
        dest="hosts",
        metavar="HOST[:SLOTS],...",
        help="machines, and how many ranks each takes (default: 1); one that is named "
        "twice takes twice as many, as with mpirun",
    )
    source.add_argument(
        "--hostfile",
        type=Path,
        metavar="FILE",
        help="the same in a file: Open MPI's (`mac1 slots=2`), or MLX's JSON, as "
        "mlx.distributed_config writes it",
    )
    parser.add_argument(
        "--iface",
        metavar="NAME",
        help="network for MPI: an interface of this machine, or 10.0.0.0/24 (default: "
        "Thunderbolt before Ethernet before Wi-Fi, of those that reach all hosts)",
    )


def hosts_of(parsed: argparse.Namespace) -> HostList:
    """Return the hosts of -H or --hostfile; none if neither was given.

    Warns of a host that is named twice, since the second may be a typing mistake.
    """
    if parsed.hosts is not None:
        named = hosts.parse_hosts(parsed.hosts)
    elif parsed.hostfile is not None:
        expected = "a file with lines such as `mac1 slots=2`, or MLX's JSON"
        with opening("--hostfile", expected):
            named = host_files.read_hosts(parsed.hostfile)
    else:
        return HostList()
    slots = {host.name: host.slots for host in named.hosts}
    for name, times in named.repeated:
        print_error(
            f"mlxdist: warning: {name} is named {times} times, and takes {slots[name]} "
            f"ranks; if this is intended, name it once, as {name}:{slots[name]}"
        )
    return named


def network_of(parsed: argparse.Namespace, named: Sequence[Host]) -> str | None:
    """Return the network that --iface selects; None without the option.

    Raises:
        ValueError: there is no such network, or no host was named.
    """
    if parsed.iface is None:
        return None
    if not named:
        raise ValueError("--iface is for several hosts: give -H or --hostfile")
    return network.resolve_network(parsed.iface)


def job_options(named: HostList, iface: str | None) -> list[str]:
    """Return options of `mlxdist run`, so that a check runs as the user's job would.

    They carry a host file's variables, and the network that its addresses select unless
    `iface` is given: the check's `-H` has no addresses.
    """
    chosen = iface or network.mpi_network(named.hosts, None)
    options = ["--iface", chosen] if chosen is not None else []
    for name, value in named.variables:
        options += ["--env", f"{name}={value}"]
    return options


@contextmanager
def opening(option: str, expected: str) -> Iterator[None]:
    """Turn the OSError of an unreadable file into a ValueError naming the option."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{option} {error.filename}: {error.strerror}; wanted {expected}"
        ) from None


def positive(text: str) -> int:
    """Parse an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted 1 or more")
    return int(text)


def count(text: str) -> int:
    """Parse an integer of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted 0 or more")
    return int(text)


def seconds(text: str) -> float:
    """Parse a finite number above 0."""
    try:
        if 0 < float(text) < float("inf"):
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"found {text!r}, wanted a number above 0")
