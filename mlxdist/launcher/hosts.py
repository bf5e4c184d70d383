"""Hosts and their slots, as `-H` gives them; host_files.py reads them from a file.

Host names end up on the command lines of mpirun and ssh. So anything that is no host
name is refused here.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from . import environment

MAX_SLOTS = 4096
MAX_HOSTS = 4096
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LOCAL = re.compile(r"localhost|127(\.\d+){3}")


@dataclass(frozen=True)
class Host:
    """A machine.

    Attributes:
        name: by which ssh and mpirun reach it.
        slots: how many ranks it takes.
        addresses: IPv4 addresses for the data of ranks.
        devices: for each entry of the host file, the names of the RDMA devices that
            lead to it; none to itself and to one that no cable leads to.
    """

    name: str
    slots: int = 1
    addresses: tuple[str, ...] = ()
    devices: tuple[tuple[str, ...], ...] = ()

    def __str__(self) -> str:
        return f"{self.name}:{self.slots}"


class HostList(NamedTuple):
    """The machines of `-H` or a host file.

    Attributes:
        hosts: each machine once, with the slots of all its entries.
        variables: names and values for the ranks, from "envs" of MLX's host files.
        repeated: names of machines with several entries, and how many.
        backend: of MLX, which a host file names for the data; None if it names none.
    """

    hosts: tuple[Host, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    repeated: tuple[tuple[str, int], ...] = ()
    backend: str | None = None


def check_name(name: object) -> str:
    """Return the name of a host, or its IPv4 address.

    Raises:
        ValueError: it is neither.
    """
    prefix = f"host {name!r}"
    if not isinstance(name, str) or not name:
        raise ValueError(f"{prefix}: wanted a name such as mac1 or mac1.local")
    if "@" in name:
        raise ValueError(
            f"{prefix}: a user's name can't be given here; put it into ~/.ssh/config: "
            "Host, HostName and User"
        )
    if len(name) > 253 or not all(_LABEL.fullmatch(part) for part in name.split(".")):
        raise ValueError(
            f"{prefix}: wanted letters, digits, '-', '_' and '.', or an IPv4 address"
        )
    if re.fullmatch(r"[0-9.]+", name):
        check_address(name)
    return name


def check_address(address: object) -> str:
    """Return an IPv4 address.

    Raises:
        ValueError: it is none.
    """
    try:
        if not isinstance(address, str):
            raise ValueError
        return str(ipaddress.IPv4Address(address))
    except ValueError:
        raise ValueError(
            f"address {address!r}: wanted IPv4, such as 10.0.0.1"
        ) from None


def check_variable(name: str, value: str) -> tuple[str, str]:
    """Return the name and the value of an environment variable for the ranks.

    Raises:
        ValueError: the name is none, or mpirun or mlxdist sets it, or the value can't
            be passed on.
    """
    if not _VARIABLE.fullmatch(name):
        raise ValueError(
            f"environment variable {name!r}: wanted letters, digits and '_', not "
            "beginning with a digit"
        )
    if environment.is_reserved(name):
        raise ValueError(f"environment variable {name}: mpirun and mlxdist set it")
    if "\0" in value:
        raise ValueError(f"environment variable {name}: its value holds a zero byte")
    return name, value


def parse_hosts(text: str) -> HostList:
    """Parse `mac1:2,mac2`: hosts with 2 slots and 1. Slots of equal names are added up.

    Raises:
        ValueError: a name or a number is invalid.
    """
    return merge(_parse_host(word) for word in text.split(","))


def _parse_host(word: str) -> Host:
    name, colon, slots = word.strip(" ").partition(":")
    return Host(check_name(name), parse_slots(slots, word) if colon else 1)


def parse_slots(value: object, context: str) -> int:
    """Return a number of slots.

    Args:
        context: what has the number, for the error.

    Raises:
        ValueError: it is none, or too large.
    """
    text = str(value)
    is_short_number = text.isascii() and text.isdecimal() and len(text) < 6
    if not is_short_number or not 1 <= int(text) <= MAX_SLOTS:
        raise ValueError(
            f"{context!r}: found {text[:20]!r} slots, wanted 1 to {MAX_SLOTS}"
        )
    return int(text)


def merge(hosts: Iterable[Host]) -> HostList:
    """Return each name once, in the order of its first entry, with its slots added up.

    Raises:
        ValueError: there are too many slots or hosts, or this machine is named
            localhost, by which other hosts can't reach it.
    """
    merged: dict[str, Host] = {}
    entries: dict[str, int] = {}
    for host in hosts:
        key = host.name.lower()  # host names are case-insensitive
        first = merged.get(key, Host(host.name, 0))
        slots = parse_slots(first.slots + host.slots, host.name)
        addresses = dict.fromkeys((*first.addresses, *host.addresses))
        devices = first.devices or host.devices
        merged[key] = Host(first.name, slots, tuple(addresses), devices)
        entries[first.name] = entries.get(first.name, 0) + 1
    if len(merged) > MAX_HOSTS:
        raise ValueError(f"{len(merged)} hosts; wanted at most {MAX_HOSTS}")
    local = [name for name in merged if _LOCAL.fullmatch(name)]
    if local and len(merged) > 1:
        raise ValueError(
            f"host {local[0]!r} among others: name this machine as the others reach it"
        )
    repeated = tuple((name, number) for name, number in entries.items() if number > 1)
    return HostList(tuple(merged.values()), repeated=repeated)


def assign_ranks(hosts: Sequence[Host], ranks: int) -> list[str]:
    """Return the host's name of each rank: the first host's slots, then the second's.

    Raises:
        ValueError: there are more ranks than slots.
    """
    names = [host.name for host in hosts for _ in range(host.slots)]
    if ranks > len(names):
        listed = ",".join(map(str, hosts))
        raise ValueError(
            f"{ranks} ranks on {len(names)} slot{'s' * (len(names) > 1)} ({listed}); "
            f"give hosts more of them, such as -H {hosts[0].name}:{ranks}"
        )
    return names[:ranks]
