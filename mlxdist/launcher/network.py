"""The choice of the network for MPI's traffic between hosts.

Networks are chosen and not interfaces: a network such as 10.0.0.0/24 is the same on all
hosts, and an interface's name may not be.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
from collections.abc import Sequence

from .hosts import Host
from .interfaces import Interface, local_interfaces

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,31}")


def mpi_network(
    hosts: Sequence[Host],
    choice: str | None,
    interfaces: Sequence[Interface] | None = None,
) -> str | None:
    """Return the network for MPI's traffic: the one chosen, or the best with all hosts.

    The addresses of a host file come first, and then those of the hosts' names: the
    file may have those of cables, each of which leads to one neighbour.

    Args:
        choice: what `--iface` names; None if it was not given.
        interfaces: this machine's; None lists them.

    Returns:
        None where no network holds an address of every host.

    Raises:
        ValueError: `choice` names no interface or network of this machine.
    """
    if choice is not None:
        return resolve_network(choice)
    interfaces = local_interfaces() if interfaces is None else interfaces
    local = {str(interface.address.ip) for interface in interfaces}
    for addresses in (
        [host.addresses or addresses_of(host) for host in hosts],
        [addresses_of(host) for host in hosts],
    ):
        remote = [of_host for of_host in addresses if not _are_local(of_host, local)]
        best = best_interface(interfaces, remote)
        if best is not None:
            return best.network
    return None


def best_interface(
    interfaces: Sequence[Interface], remote: Sequence[Sequence[str]]
) -> Interface | None:
    """Return the first interface whose network holds an address of every other host.

    Args:
        interfaces: this machine's, the best first.
        remote: the addresses of each other host.

    Returns:
        None where there is none: hosts are behind a router, or their names are unknown.
    """
    for interface in interfaces if remote else ():
        network = interface.address.network
        if all(
            any(ipaddress.IPv4Address(address) in network for address in addresses)
            for addresses in remote
        ):
            return interface
    return None


def check_choice(text: str) -> str:
    """Return `--iface`'s value: an interface's name, or a network such as 10.0.0.0/24.

    Raises:
        ValueError: it is neither.
    """
    if "/" in text:
        try:
            return str(ipaddress.IPv4Network(text, strict=False))
        except ValueError as error:
            raise ValueError(f"--iface {text!r}: {error}") from None
    if not _NAME.fullmatch(text):
        raise ValueError(
            f"--iface {text!r}: wanted an interface's name, such as bridge0, or a "
            "network, such as 10.0.0.0/24"
        )
    return text


def resolve_network(choice: str, interfaces: Sequence[Interface] | None = None) -> str:
    """Return the network that `--iface` names, directly or by an interface.

    If the machine lists no interfaces, the choice is returned as it is.

    Args:
        interfaces: this machine's; None lists them.

    Raises:
        ValueError: this machine has no such interface or network.
    """
    choice = check_choice(choice)
    interfaces = local_interfaces() if interfaces is None else interfaces
    if not interfaces:
        return choice
    matches = [each for each in interfaces if choice == each.name or each.is_in(choice)]
    if not matches:
        raise ValueError(
            f"--iface {choice!r}: this machine has no such interface or network with "
            f"an IPv4 address; it has {', '.join(map(str, interfaces))}"
        )
    if matches[0].kind == "loopback":
        raise ValueError(f"--iface {choice!r} reaches no other host")
    return choice if "/" in choice else matches[0].network


def addresses_of(host: Host) -> tuple[str, ...]:
    """Return the IPv4 addresses of a host's name; none if it is unknown here."""
    with contextlib.suppress(OSError):
        results = socket.getaddrinfo(host.name, None, socket.AF_INET)
        return tuple(dict.fromkeys(str(result[4][0]) for result in results))
    return ()


def local_addresses() -> set[str]:
    """Return this machine's IPv4 addresses."""
    return {str(interface.address.ip) for interface in local_interfaces()}


def is_local(host: Host, local: set[str]) -> bool:
    """Return whether a host is this machine.

    Compared by address, because two machines may have the same name by mistake.

    Args:
        local: this machine's addresses, see `local_addresses`.
    """
    return _are_local(addresses_of(host), local)


def _are_local(addresses: Sequence[str], local: set[str]) -> bool:
    return any(ip in local or ip.startswith("127.") for ip in addresses)
