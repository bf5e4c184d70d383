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
from typing import TypeAlias

from . import environment

BACKENDS = ("mpi", "ring", "jaccl", "nccl")  # that `mlxdist.init` knows

# For each rank: the names of the devices that lead to it, several where there are
# several cables; none to the rank itself, and to one that is not a neighbour in a ring.
Devices: TypeAlias = "tuple[tuple[str, ...], ...]"


@dataclass(frozen=True)
class DataPlane:
    """How the ranks of a job exchange data.

    Attributes:
        backend: one of BACKENDS; None where the job names none.
        addresses: each rank's IPv4 addresses for data, that of the best wire first, by
            rank; () where the host file has none.
        devices: each rank's RDMA devices, by rank: MLX's device matrix, with an empty
            list for its null; () where the host file has none.
    """

    backend: str | None = None
    addresses: tuple[tuple[str, ...], ...] = ()
    devices: tuple[Devices, ...] = ()


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
