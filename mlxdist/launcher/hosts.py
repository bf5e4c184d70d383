"""Which hosts take part, and with how many ranks: from `-H` or a host file.

Names end up on the command lines of mpirun and ssh, so that what is no host name is
refused here.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

MAX_SLOTS = 4096
MAX_HOSTS = 4096
_LARGEST_FILE = 2**22  # bytes
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LOCAL = re.compile(r"localhost|127(\.\d+){3}")
# What mpirun and this package tell the ranks.
_RESERVED = ("OMPI_COMM_", "PMIX_", "PRTE_", "MLXDIST_JOB", "MLXDIST_MARKS")
_RESERVED_NAMES = ("MLXDIST_RUN_DIR",)
# What a host file, which may be somebody else's, can set: nothing by which a program,
# this machine's mpirun and ssh among them, finds code to run.
_OF_FILES = re.compile(
    r"MLX_(METAL|MAX|BFS|ENABLE)_[A-Z0-9_]+|[A-Z]+_(NUM|MAXIMUM)_THREADS|"
    r"HF_HUB_OFFLINE|TOKENIZERS_PARALLELISM"
)


@dataclass(frozen=True)
class Host:
    """A machine: its name, how many ranks it takes, and addresses for MPI if given.

    `mentions` tells how often it was named, where its slots were added up.
    """

    name: str
    slots: int = 1
    addresses: tuple[str, ...] = ()
    mentions: int = field(default=1, compare=False)

    def __str__(self) -> str:
        return f"{self.name}:{self.slots}"


class HostFile(NamedTuple):
    """What a host file says."""

    hosts: tuple[Host, ...]
    variables: tuple[tuple[str, str], ...] = ()  # of MLX's "envs"


def check_name(name: object) -> str:
    """The name, where it is one of a host or an IPv4 address.

    Raises:
        ValueError: otherwise.
    """
    found = f"host {name!r}"
    if not isinstance(name, str) or not name:
        raise ValueError(f"{found}: wanted a name such as mac1 or mac1.local")
    if "@" in name:
        raise ValueError(
            f"{found}: a user's name can't be given here; put it into ~/.ssh/config: "
            "Host, HostName and User"
        )
    if len(name) > 253 or not all(_LABEL.fullmatch(part) for part in name.split(".")):
        raise ValueError(
            f"{found}: wanted letters, digits, '-', '_' and '.', or an IPv4 address"
        )
    if re.fullmatch(r"[0-9.]+", name):
        check_address(name)
    return name


def check_address(address: object) -> str:
    """The address, where it is an IPv4 one.

    Raises:
        ValueError: otherwise.
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
    """An environment variable's name and value, where they can be passed on.

    Raises:
        ValueError: otherwise.
    """
    if not _VARIABLE.fullmatch(name):
        raise ValueError(
            f"environment variable {name!r}: wanted letters, digits and '_', not "
            "beginning with a digit"
        )
    if name.startswith(_RESERVED) or name in _RESERVED_NAMES:
        raise ValueError(f"environment variable {name}: mpirun and mlxdist set it")
    if "\0" in value:
        raise ValueError(f"environment variable {name}: its value holds a zero byte")
    return name, value


def parse_hosts(text: str) -> tuple[Host, ...]:
    """`mac1:2,mac2` -> hosts with 2 slots and 1; a name may come twice and adds up.

    Raises:
        ValueError: where a name or a number is none.
    """
    return merged(_one(word) for word in text.split(","))


def _one(word: str) -> Host:
    name, colon, slots = word.strip(" ").partition(":")
    return Host(check_name(name), _slots(slots, word) if colon else 1)


def _slots(text: object, where: str) -> int:
    number = str(text)
    plain = number.isascii() and number.isdecimal() and len(number) < 6
    if not plain or not 1 <= int(number) <= MAX_SLOTS:
        raise ValueError(
            f"{where!r}: found {number[:20]!r} slots, wanted 1 to {MAX_SLOTS}"
        )
    return int(number)


def read_hosts(path: Path) -> HostFile:
    """Reads a host file: Open MPI's (`mac1 slots=2`), or MLX's JSON.

    Raises:
        ValueError: with the line, where it is neither.
        OSError: where it can't be read.
    """
    with path.open("rb") as file:
        data = file.read(_LARGEST_FILE + 1)
    if len(data) > _LARGEST_FILE:
        raise ValueError(f"{path} is larger than {_LARGEST_FILE} bytes: no host file")
    try:
        text = data.decode("utf-8-sig")  # some editors begin with a mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8") from error
    if text.lstrip()[:1] in ("[", "{"):
        return _from_json(text, path)
    hosts = []
    for number, line in enumerate(text.split("\n"), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            hosts.append(_from_words(words))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    if not hosts:
        raise ValueError(f"{path} names no host; wanted lines such as: mac1 slots=2")
    return HostFile(merged(hosts))


def _from_words(words: Sequence[str]) -> Host:
    if ":" in words[0][1:]:  # as -H has it
        raise ValueError(f"found {words[0]!r}, wanted: NAME slots=NUMBER")
    host, most = Host(check_name(words[0])), MAX_SLOTS
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if not equals or key not in ("slots", "max_slots", "max-slots"):
            raise ValueError(f"found {word!r}, wanted: NAME slots=NUMBER")
        slots = _slots(value, word)
        if key == "slots":
            host = replace(host, slots=slots)
        else:
            most = slots
    if host.slots > most:
        raise ValueError(f"found slots={host.slots} above max_slots={most}")
    return host


def _from_json(text: str, path: Path) -> HostFile:
    """A list of `{"ssh": "mac1", "ips": [...]}`, or an object with it as "hosts".

    An entry may have "slots" as well, which MLX does not know.
    """
    try:
        data = json.loads(text)
        listed = data.get("hosts") if isinstance(data, dict) else data
        if not isinstance(listed, list) or not listed:
            raise ValueError('wanted a list of {"ssh": "mac1", "ips": ["10.0.0.1"]}')
        hosts = [_from_entry(entry) for entry in listed]
        variables = _variables(data) if isinstance(data, dict) else ()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None
    return HostFile(merged(hosts), variables)


def _from_entry(entry: Any) -> Host:
    addresses = entry.get("ips", []) if isinstance(entry, dict) else None
    if not isinstance(addresses, list):
        raise ValueError(f'found {entry!r}, wanted {{"ssh": "mac1", "ips": [...]}}')
    name, slots = check_name(entry.get("ssh")), entry.get("slots", 1)
    if type(slots) is not int:
        raise ValueError(f"host {name}: found slots {slots!r}, wanted a whole number")
    listed = tuple(check_address(one) for one in addresses)
    return Host(name, _slots(slots, name), listed)


def _variables(data: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    backend, envs = data.get("backend", ""), data.get("envs", [])
    if backend not in ("", "any", "mpi"):
        raise ValueError(
            f"backend {backend!r} is started with mlx.launch; mlxdist run starts mpi"
        )
    if not isinstance(envs, list) or not all(isinstance(one, str) for one in envs):
        raise ValueError(f'found envs {envs!r}, wanted a list of "NAME=VALUE"')
    return tuple(_variable_of_file(*_halves(one)) for one in envs)


def _variable_of_file(name: str, value: str) -> tuple[str, str]:
    if not _OF_FILES.fullmatch(name):
        raise ValueError(
            f"environment variable {name!r}: a host file can set MLX's own, such as "
            "MLX_METAL_FAST_SYNCH, and numbers of threads, since by others programs "
            f"may find code to run; where you want it so, give --env {name}=..."
        )
    return check_variable(name, value)


def _halves(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"found envs entry {text!r}, wanted NAME=VALUE")
    return name, value


def merged(hosts: Iterable[Host]) -> tuple[Host, ...]:
    """Each name once, in the order of its first mention, with its slots added up.

    Raises:
        ValueError: more slots than a host can have, or this machine as localhost
            beside others, who can't reach it by that name.
    """
    found: dict[str, Host] = {}
    for host in hosts:
        key = host.name.lower()  # as names are to those who resolve them
        before = found.get(key, Host(host.name, 0, mentions=0))
        addresses = dict.fromkeys((*before.addresses, *host.addresses))
        found[key] = Host(
            before.name,
            _slots(before.slots + host.slots, host.name),
            tuple(addresses),
            before.mentions + host.mentions,
        )
    if len(found) > MAX_HOSTS:
        raise ValueError(f"{len(found)} hosts; wanted at most {MAX_HOSTS}")
    local = [name for name in found if _LOCAL.fullmatch(name)]
    if local and len(found) > 1:
        raise ValueError(
            f"host {local[0]!r} beside others: name this machine as the others reach it"
        )
    return tuple(found.values())


def place(hosts: Sequence[Host], ranks: int) -> list[str]:
    """The host's name of each rank: the slots of the first host, then the second's.

    Raises:
        ValueError: where there are more ranks than slots.
    """
    names = [host.name for host in hosts for _ in range(host.slots)]
    if ranks > len(names):
        listed = ",".join(map(str, hosts))
        raise ValueError(
            f"{ranks} ranks on {len(names)} slot{'s' * (len(names) > 1)} ({listed}); "
            f"give hosts more of them, such as -H {hosts[0].name}:{ranks}"
        )
    return names[:ranks]
