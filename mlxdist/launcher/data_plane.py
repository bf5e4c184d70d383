"""What a rank knows of the data plane: the backend, and how it reaches the others.

mpirun starts the ranks, and MPI stays the control plane. Gradients may go over another
backend of MLX, which a host file or `mlxdist run --backend` names. It reaches the ranks
in two variables: MLXDIST_BACKEND, which a user may set as well, and one in JSON with
the addresses and RDMA devices of the host file, which is the launcher's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from . import device_matrix, environment
from .device_matrix import Row
from .hosts import Host, assign_ranks

BACKENDS = ("mpi", "ring", "jaccl", "nccl")  # that `mlxdist.init` knows

RING_OF_JACCL = "jaccl-ring"  # jaccl, over the cables of a ring
CHOICES = ("auto", *BACKENDS, RING_OF_JACCL)  # of `mlxdist run --backend`
JACCL = ("jaccl", RING_OF_JACCL)


@dataclass(frozen=True)
class DataPlane:
    """How the ranks of a job exchange data.

    Attributes:
        backend: one of BACKENDS; None where the job names none.
        addresses: the IPv4 addresses for data of each rank's host, by rank: () for a
            host that has none in the host file, and () if none has.
        devices: each rank's RDMA devices, by rank: MLX's device matrix, with an empty
            list for its null; () unless the backend is jaccl.
    """

    backend: str | None = None
    addresses: tuple[tuple[str, ...], ...] = ()
    devices: tuple[Row, ...] = ()


def check_backend(name: str, source: str) -> str:
    """Return the name of a backend.

    Args:
        source: what gave the name, for the error.

    Raises:
        ValueError: there is no such backend.
    """
    if name not in BACKENDS:
        raise ValueError(f"{source} is {name!r}; wanted one of {', '.join(BACKENDS)}")
    return name


def data_plane_of(variables: Mapping[str, str]) -> DataPlane:
    """Return the data plane of this job, from a rank's environment.

    Raises:
        ValueError: MLXDIST_BACKEND names no backend.
    """
    name = variables.get(environment.BACKEND)
    backend = check_backend(name, environment.BACKEND) if name else None
    table = json.loads(variables.get(environment.DATA_PLANE, "{}"))
    return DataPlane(
        backend,
        tuple(map(tuple, table.get("addresses", ()))),
        tuple(tuple(map(tuple, row)) for row in table.get("devices", ())),
    )


def variables_of(plane: DataPlane) -> dict[str, str]:
    """Return the variables from which `data_plane_of` makes an equal data plane."""
    result = {}
    if plane.backend is not None:
        result[environment.BACKEND] = plane.backend
    table: dict[str, Sequence[object]] = {
        name: value
        for name, value in (
            ("addresses", plane.addresses),
            ("devices", plane.devices),
        )
        if value
    }
    if table:
        result[environment.DATA_PLANE] = json.dumps(table, separators=(",", ":"))
    return result


# The launcher's side


def plan(hosts: Sequence[Host], ranks: int, backend: str | None) -> DataPlane:
    """Return the data plane of a job over some hosts.

    Args:
        backend: one of CHOICES but "auto"; None where the user and the host file leave
            it to the ranks.

    Raises:
        ValueError: jaccl was asked for, and the hosts' devices form no mesh or ring, or
            a host would have several ranks.
    """
    names = assign_ranks(hosts, ranks) if hosts else []
    by_name = {host.name: host for host in hosts}
    used = [by_name[name] for name in names]
    addresses = tuple(host.addresses for host in used)
    devices = _devices(used, backend) if backend in JACCL else ()
    name = "jaccl" if backend == RING_OF_JACCL else backend
    return DataPlane(name, addresses if any(addresses) else (), devices)


def _devices(used: Sequence[Host], backend: str) -> tuple[Row, ...]:
    """Return the device matrix of ranks, given the host of each."""
    if not any(host.devices for host in used):
        raise ValueError(
            f"backend {backend} needs the RDMA devices between the hosts: give "
            "--hostfile with a file of mlx.distributed_config, whose hosts have rdma"
        )
    names = [host.name for host in used]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise ValueError(
            f"backend {backend} takes one rank on each host, and {doubled} has "
            f"{names.count(doubled)}; name each host once, without slots"
        )
    # A job of fewer ranks runs on the first hosts.
    rows = [host.devices[: len(used)] for host in used]
    ring = backend == RING_OF_JACCL
    for problem in device_matrix.problems(names, rows, ring=ring):
        raise ValueError(f"backend {backend}: {problem}; {device_matrix.REMEDY}")
    return tuple(rows)
