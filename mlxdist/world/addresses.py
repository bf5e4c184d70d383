"""The address at which each rank takes data: chosen from what all of them report."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple, TypeAlias

from ..launcher.interfaces import Interface

LOOPBACK = "127.0.0.1"
_ROUTE_TIMEOUT = 3.0  # seconds

# Each rank's addresses: several where it has several wires.
Addresses: TypeAlias = "tuple[tuple[str, ...], ...]"


class Address(NamedTuple):
    """An IPv4 address of a host, as a rank reports it: `("en0", "10.0.0.1/24")`."""

    interface: str
    address: str

    @property
    def ip(self) -> str:
        return self.address.partition("/")[0]

    def is_in(self, choice: str) -> bool:
        """Return whether it is of an interface, or in a network such as 10.0.0.0/24."""
        if "/" not in choice:
            return choice == self.interface
        network = ipaddress.IPv4Network(choice, strict=False)
        return ipaddress.IPv4Address(self.ip) in network


def reported(interfaces: Sequence[Interface]) -> list[Address]:
    """Return what a rank reports of its interfaces, the best first."""
    return [
        Address(each.name, str(each.address))
        for each in interfaces
        if each.kind != "loopback"
    ]


def choose_addresses(
    every: Sequence[Sequence[Address]], choices: Sequence[str]
) -> Addresses:
    """Return an address of each rank's host that the others can reach.

    Args:
        every: what each rank reports; ranks of a host report the same.
        choices: the interfaces or networks that MPI's traffic uses; any if empty.

    Returns:
        Those in the first network in which all hosts have an address of their own.

    Raises:
        ValueError: there is no such network. The message has the remedy.
    """
    allowed = [
        [each for each in of_rank if not choices or any(map(each.is_in, choices))]
        for of_rank in every
    ]
    for candidate in allowed[0] if allowed else ():
        network = str(ipaddress.IPv4Interface(candidate.address).network)
        candidates = [
            next((each.ip for each in of_rank if each.is_in(network)), None)
            for of_rank in allowed
        ]
        addresses = [ip for ip in candidates if ip is not None]
        # Bridges of containers have the same address on several hosts.
        hosts = {ip: tuple(every[rank]) for rank, ip in enumerate(addresses)}
        if len(addresses) == len(every) and all(
            hosts[ip] == tuple(every[rank]) for rank, ip in enumerate(addresses)
        ):
            return tuple((ip,) for ip in addresses)
    texts = [
        f"rank {rank}: {', '.join(map(' '.join, of_rank)) or 'none'}"
        for rank, of_rank in enumerate(allowed)
    ]
    among = f" among {', '.join(choices)}" if choices else ""
    raise ValueError(
        f"no network{among} in which all hosts have an address of their own; name one "
        "with `mlxdist run --iface`, or give `ips` in the host file. Addresses of "
        + "; ".join(texts)
    )


def reserve_port(address: str, until: ExitStack) -> int:
    """Return a free TCP port of a local address that no other program gets.

    It is bound and does not listen, so that nothing can connect. MLX binds it as well,
    which SO_REUSEPORT allows to processes of one user, and then listens.

    Args:
        until: holds the reservation until it is closed.

    Raises:
        OSError: this host does not have the address.
    """
    reservation = until.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        reservation.bind((address, 0))
    except OSError as error:
        remedy = f"{address}: correct the host file's ips of {socket.gethostname()}"
        raise OSError(error.errno, f"{error.strerror}: {remedy}") from None
    return int(reservation.getsockname()[1])


def route_problem(address: str, port: int) -> str | None:
    """Return why packets don't reach a port that is reserved; None where they do.

    Nothing listens there yet, and so its host refuses the connection. A firewall may
    drop it without an answer; that is no proof, since it may let MLX's pass.
    """
    try:
        with socket.create_connection((address, port), _ROUTE_TIMEOUT):
            return None
    except (ConnectionRefusedError, TimeoutError):
        return None
    except OSError as error:
        return f"{address} can't be reached: {error.strerror}"
