"""Host files: Open MPI's lines, and every form of MLX's JSON.

MLX's own programs read and write the JSON in mlx/_distributed_utils/common.py: a list
of hosts, or an object with that list as "hosts", a "backend" and "envs". As there, keys
of other names are ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path

from . import hosts
from .hosts import Host, HostList

# Of MLX's host files. "any" and "" leave the choice to the program that reads them.
BACKENDS = ("mpi", "ring", "jaccl", "jaccl-ring", "nccl")
_LARGEST_FILE = 2**22  # bytes
_DEVICE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
# The variables that a host file may set. The file may be somebody else's, so none by
# which a program, such as this machine's mpirun or ssh, finds code to run.
_ALLOWED_IN_FILES = re.compile(
    r"MLX_(METAL|MAX|BFS|ENABLE)_[A-Z0-9_]+|[A-Z]+_(NUM|MAXIMUM)_THREADS|"
    r"HF_HUB_OFFLINE|TOKENIZERS_PARALLELISM|AGX_RELAX_CDM_CTXSTORE_TIMEOUT"
)
_JSON_EXAMPLE = '{"ssh": "mac1", "ips": ["10.0.0.1"]}'


def read_hosts(path: Path) -> HostList:
    """Read a host file: Open MPI's (`mac1 slots=2`), or MLX's JSON.

    Raises:
        ValueError: it is neither; the message names the line or the entry.
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
    return _read_lines(text, path)


def _read_lines(text: str, path: Path) -> HostList:
    entries = []
    for number, line in enumerate(text.split("\n"), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            entries.append(_parse_line(words))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    if not entries:
        raise ValueError(f"{path} names no host; wanted lines such as: mac1 slots=2")
    return hosts.merge(entries)


def _parse_line(words: Sequence[str]) -> Host:
    """Parse a line of Open MPI's host file: a name, `slots=` and `max_slots=`."""
    if ":" in words[0][1:]:  # the syntax of -H
        raise ValueError(f"found {words[0]!r}, wanted: NAME slots=NUMBER")
    numbers = {"slots": 1, "max_slots": hosts.MAX_SLOTS}
    for word in words[1:]:
        key, equals, value = word.replace("max-slots", "max_slots").partition("=")
        if not equals or key not in numbers:
            raise ValueError(f"found {word!r}, wanted: NAME slots=NUMBER")
        numbers[key] = hosts.parse_slots(value, word)
    slots, limit = numbers["slots"], numbers["max_slots"]
    if slots > limit:
        raise ValueError(f"found slots={slots} above max_slots={limit}")
    return Host(hosts.check_name(words[0]), slots)


def _read_json(text: str, path: Path) -> HostList:
    """Parse a list of `{"ssh": "mac1", "ips": [...]}`, or an object with it as "hosts".

    An entry may have "slots" as well, which MLX does not know.
    """
    try:
        data = json.loads(text)
        entries = data.get("hosts") if isinstance(data, dict) else data
        if not isinstance(entries, list) or not entries:
            raise ValueError(f"wanted a list of {_JSON_EXAMPLE}, alone or as hosts")
        parsed = [_parse_entry(entry, i) for i, entry in enumerate(entries, 1)]
        _check_repeated(parsed)
        merged = hosts.merge(parsed)
        _check_addresses(merged.hosts)
        options = data if isinstance(data, dict) else {}
        return merged._replace(
            variables=_parse_variables(options), backend=_parse_backend(options)
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None


def _parse_entry(entry: object, number: int) -> Host:
    """Parse a host.

    Args:
        number: of the entry in the file, from 1, for errors.
    """
    try:
        addresses = entry.get("ips", []) if isinstance(entry, dict) else None
        if not isinstance(entry, dict) or not isinstance(addresses, list):
            raise ValueError(f"found {entry!r}, wanted {_JSON_EXAMPLE}")
        name, slots = hosts.check_name(entry.get("ssh")), entry.get("slots", 1)
        if type(slots) is not int:
            raise ValueError(
                f"host {name}: found slots {slots!r}, wanted a whole number"
            )
        slots = hosts.parse_slots(slots, name)
        checked = tuple(map(hosts.check_address, addresses))
        return Host(name, slots, checked, _parse_row(entry.get("rdma", []), name))
    except ValueError as error:
        raise ValueError(f"entry {number}: {error}") from None


def _parse_row(row: object, host: str) -> tuple[tuple[str, ...], ...]:
    """Parse a host's row of the device matrix: null, a name or a list of names each."""
    if not isinstance(row, list):
        raise ValueError(
            f"host {host}: found rdma {row!r}, wanted a list with an item for each "
            'host, such as [null, "rdma_en3"]'
        )
    return tuple(_parse_devices(item, host) for item in row)


def _parse_devices(item: object, host: str) -> tuple[str, ...]:
    names = [] if item is None else item if isinstance(item, list) else [item]
    for name in names:
        if not isinstance(name, str) or not _DEVICE.fullmatch(name):
            raise ValueError(
                f"host {host}: found {item!r} in rdma, wanted null, the name of a "
                'device such as "rdma_en3", or a list of names'
            )
    return tuple(names)


def _check_repeated(entries: Sequence[Host]) -> None:
    """Refuse two entries of a host that differ: its ranks share all its wires."""
    first: dict[str, tuple[int, Host]] = {}
    for number, host in enumerate(entries, 1):
        known, other = first.setdefault(host.name.lower(), (number, host))
        if host.addresses != other.addresses:
            raise ValueError(
                f"entry {number}: host {host.name} has ips {list(host.addresses)}, and "
                f"entry {known} has {list(other.addresses)}: list all addresses of a "
                "host in each of its entries, or in one entry with slots"
            )


def _check_addresses(named: Sequence[Host]) -> None:
    """Refuse addresses by which the other hosts can't reach a host."""
    owners: dict[str, str] = {}
    for host in named:
        for address in host.addresses:
            owner = owners.setdefault(address, host.name)
            if owner != host.name:
                raise ValueError(
                    f"hosts {owner} and {host.name} both have {address} in ips: give "
                    "each host addresses of its own"
                )
            parsed = IPv4Address(address)
            is_open = not (parsed.is_unspecified or parsed.is_multicast)
            if not is_open or (parsed.is_loopback and len(named) > 1):
                raise ValueError(
                    f"host {host.name} has {address} in ips: wanted an address by "
                    "which the other hosts reach it"
                )


def _parse_backend(data: dict[str, object]) -> str | None:
    backend = data.get("backend", "")
    if backend in ("", "any"):
        return None
    if not isinstance(backend, str) or backend not in BACKENDS:
        raise ValueError(
            f"found backend {backend!r}, wanted one of {', '.join(BACKENDS)}, any"
        )
    return backend


def _parse_variables(data: dict[str, object]) -> tuple[tuple[str, str], ...]:
    envs = data.get("envs", [])
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
    return hosts.check_variable(name, value)
