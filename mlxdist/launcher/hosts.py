"""Hosts and their slots, from `-H` or a host file.

Host names end up on the command lines of mpirun and ssh. So anything that is no host
name is refused here.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from . import environment

MAX_SLOTS = 4096
MAX_HOSTS = 4096
_LARGEST_FILE = 2**22  # bytes
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LOCAL = re.compile(r"localhost|127(\.\d+){3}")
# The variables that a host file may set. The file may be somebody else's, so none by
# which a program, such as this machine's mpirun or ssh, finds code to run.
_ALLOWED_IN_FILES = re.compile(
    r"MLX_(METAL|MAX|BFS|ENABLE)_[A-Z0-9_]+|[A-Z]+_(NUM|MAXIMUM)_THREADS|"
    r"HF_HUB_OFFLINE|TOKENIZERS_PARALLELISM"
)
_JSON_EXAMPLE = '{"ssh": "mac1", "ips": ["10.0.0.1"]}'


@dataclass(frozen=True)
class Host:
    """A machine: its name, how many ranks it takes, and its IPv4 addresses for MPI."""

    name: str
    slots: int = 1
    addresses: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}:{self.slots}"


class HostList(NamedTuple):
    """The machines of `-H` or a host file.

    Attributes:
        hosts: each machine once, with the slots of all its entries.
        variables: names and values for the ranks, from "envs" of MLX's host files.
        repeated: names of machines with several entries, and how many.
    """

    hosts: tuple[Host, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    repeated: tuple[tuple[str, int], ...] = ()


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
    return _merge(_parse_host(word) for word in text.split(","))


def _parse_host(word: str) -> Host:
    name, colon, slots = word.strip(" ").partition(":")
    return Host(check_name(name), _parse_slots(slots, word) if colon else 1)


def _parse_slots(value: object, context: str) -> int:
    text = str(value)
    is_short_number = text.isascii() and text.isdecimal() and len(text) < 6
    if not is_short_number or not 1 <= int(text) <= MAX_SLOTS:
        raise ValueError(
            f"{context!r}: found {text[:20]!r} slots, wanted 1 to {MAX_SLOTS}"
        )
    return int(text)


def read_hosts(path: Path) -> HostList:
    """Read a host file: Open MPI's (`mac1 slots=2`), or MLX's JSON.

    Raises:
        ValueError: it is neither; the message names the line.
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        data = file.read(_LARGEST_FILE + 1)
    if len(data) > _LARGEST_FILE:
        raise ValueError(f"{path} is larger than {_LARGEST_FILE} bytes: no host file")
    try:
        text = data.decode("utf-8-sig")  # some editors begin a file with a mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8") from error
    if text.lstrip()[:1] in ("[", "{"):
        return _read_json(text, path)
    hosts = []
    for number, line in enumerate(text.split("\n"), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            hosts.append(_parse_line(words))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    if not hosts:
        raise ValueError(f"{path} names no host; wanted lines such as: mac1 slots=2")
    return _merge(hosts)


def _parse_line(words: Sequence[str]) -> Host:
    """Parse a line of Open MPI's host file: a name, `slots=` and `max_slots=`."""
    if ":" in words[0][1:]:  # the syntax of -H
        raise ValueError(f"found {words[0]!r}, wanted: NAME slots=NUMBER")
    numbers = {"slots": 1, "max_slots": MAX_SLOTS}
    for word in words[1:]:
        key, equals, value = word.replace("max-slots", "max_slots").partition("=")
        if not equals or key not in numbers:
            raise ValueError(f"found {word!r}, wanted: NAME slots=NUMBER")
        numbers[key] = _parse_slots(value, word)
    slots, limit = numbers["slots"], numbers["max_slots"]
    if slots > limit:
        raise ValueError(f"found slots={slots} above max_slots={limit}")
    return Host(check_name(words[0]), slots)


def _read_json(text: str, path: Path) -> HostList:
    """Parse a list of `{"ssh": "mac1", "ips": [...]}`, or an object with it as "hosts".

    An entry may have "slots" as well, which MLX does not know.
    """
    try:
        data = json.loads(text)
        entries = data.get("hosts") if isinstance(data, dict) else data
        if not isinstance(entries, list) or not entries:
            raise ValueError(f"wanted a list of {_JSON_EXAMPLE}")
        hosts = _merge(map(_parse_entry, entries))
        variables = _parse_variables(data) if isinstance(data, dict) else ()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None
    return hosts._replace(variables=variables)


def _parse_entry(entry: object) -> Host:
    addresses = entry.get("ips", []) if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(addresses, list):
        raise ValueError(f"found {entry!r}, wanted {_JSON_EXAMPLE}")
    name, slots = check_name(entry.get("ssh")), entry.get("slots", 1)
    if type(slots) is not int:
        raise ValueError(f"host {name}: found slots {slots!r}, wanted a whole number")
    return Host(name, _parse_slots(slots, name), tuple(map(check_address, addresses)))


def _parse_variables(data: dict[str, object]) -> tuple[tuple[str, str], ...]:
    backend, envs = data.get("backend", ""), data.get("envs", [])
    if backend not in ("", "any", "mpi"):
        raise ValueError(
            f"backend {backend!r} is started with mlx.launch; mlxdist run starts mpi"
        )
    if not isinstance(envs, list) or not all(isinstance(text, str) for text in envs):
        raise ValueError(f'found envs {envs!r}, wanted a list of "NAME=VALUE"')
    return tuple(map(_parse_variable, envs))


def _parse_variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"found envs entry {text!r}, wanted NAME=VALUE")
    if not _ALLOWED_IN_FILES.fullmatch(name):
        raise ValueError(
            f"environment variable {name!r}: a host file can set MLX's own, such as "
            "MLX_METAL_FAST_SYNCH, and numbers of threads, because other variables may "
            f"make programs run foreign code; if you want it, give --env {name}=..."
        )
    return check_variable(name, value)


def _merge(hosts: Iterable[Host]) -> HostList:
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
        slots = _parse_slots(first.slots + host.slots, host.name)
        addresses = dict.fromkeys((*first.addresses, *host.addresses))
        merged[key] = Host(first.name, slots, tuple(addresses))
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
