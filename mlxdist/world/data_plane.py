"""The data plane: a group of MLX over another wire than MPI, set up through MPI.

mpirun starts the ranks, and MPI stays the control plane. What MLX's other backends take
from environment variables and files is gathered over MPI and given to MLX alone: ring
and nccl take addresses and free ports, jaccl a matrix of RDMA devices. Nothing stays in
the environment, which other processes would inherit.

The ranks check everything that they can before they call MLX, and raise one error on
all of them. What fails inside of MLX on one rank leaves the others waiting there until
the deadline of `init` ends the job.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import mlx.core as mx

from ..comm.agreement import MismatchError, agree, agree_on_success
from ..comm.collectives import Collectives
from ..comm.flight_recorder import Recorder
from ..comm.mpi import MpiTransport
from ..launcher import environment
from ..launcher.data_plane import DataPlane
from ..launcher.device_matrix import Row
from ..launcher.interfaces import local_interfaces
from .addresses import (
    LOOPBACK,
    Address,
    Addresses,
    choose_addresses,
    reported,
    reserve_port,
    route_problem,
)

if TYPE_CHECKING:
    from mpi4py import MPI

Group = mx.distributed.Group

# Seconds that the last rank lets the first one listen before it connects. MLX waits for
# a second after an attempt that failed.
_LISTEN_DELAY = 0.05


def control_transport(comm: MPI.Intracomm) -> MpiTransport:
    """Return collectives over MPI, which free the communicator when they are closed."""
    return MpiTransport(comm, lambda: None, Recorder(), overlaps=False)


def connect(
    backend: str, control: Collectives, plane: DataPlane, *, one_host: bool
) -> Group:
    """Return MLX's group of all ranks over a backend. Called by all of them.

    Args:
        backend: "ring", "jaccl" or "nccl".
        control: collectives of all ranks over MPI.
        plane: addresses and devices, where the launcher gave them.
        one_host: whether all ranks share a host.

    Raises:
        MismatchError: on all ranks, where one of them can't take part: MLX lacks the
            backend, there is no common network, an address is not its host's, a host
            can't be reached, or there are no RDMA devices.
        RuntimeError: MLX fails to connect.
    """
    lacks = not mx.distributed.is_available(backend)
    agree(
        control,
        f"mlxdist.init({backend!r})",
        problem=f"this MLX has no {backend!r} backend; use 'mpi'" if lacks else None,
    )
    if backend == "jaccl":
        return _connect_jaccl(control, plane)
    addresses = _addresses(control, plane, one_host=one_host)
    connect_over_tcp = _connect_ring if backend == "ring" else _connect_nccl
    return connect_over_tcp(control, addresses)


def _addresses(
    control: Collectives, plane: DataPlane, *, one_host: bool
) -> tuple[tuple[str, ...], ...]:
    """Return the addresses at which each rank takes data."""
    if plane.addresses:
        problem = _addresses_problem(plane.addresses, control.size)
        agree(control, "the addresses of the host file", problem=problem)
        return plane.addresses
    if one_host:
        return ((LOOPBACK,),) * control.size
    local = json.dumps(reported(local_interfaces()))
    every = [
        [Address(*each) for each in json.loads(data)]
        for data in control.all_gather_bytes(local.encode())
    ]
    return agree_on_success(
        control,
        "the choice of addresses",
        lambda: choose_addresses(every, environment.mpi_interfaces()),
    )


def _addresses_problem(addresses: Addresses, size: int) -> str | None:
    without = [rank for rank, each in enumerate(addresses) if not each]
    if without:
        return (
            f"the host file has no `ips` for the hosts of ranks {without}, and others "
            "have some: give every host its `ips`, or none, so that the ranks choose a "
            "network that all have"
        )
    return _table_problem("addresses", len(addresses), size)


def _connect_ring(control: Collectives, addresses: Addresses) -> Group:
    with ExitStack() as stack:
        local = agree_on_success(
            control,
            "the reservation of ports",
            lambda: [
                f"{address}:{reserve_port(address, stack)}"
                for address in addresses[control.rank]
            ],
        )
        gathered = control.all_gather_bytes(json.dumps(local).encode())
        hosts: list[list[str]] = [json.loads(data) for data in gathered]
        problem = ring_problem(hosts) or _neighbour_problem(hosts, control.rank)
        agree(control, "the ring of the ranks", problem=problem)
        path = stack.enter_context(_private_file(json.dumps(hosts)))
        variables = {"MLX_RANK": str(control.rank), "MLX_HOSTFILE": path}
        stack.enter_context(environment.temporary(variables))
        if control.rank == control.size - 1:
            time.sleep(_LISTEN_DELAY)
        return mx.distributed.init(strict=True, backend="ring")


def ring_problem(hosts: Sequence[Sequence[str]]) -> str | None:
    """Return why MLX can't make a ring of these addresses, by rank; None if it can."""
    counts = [len(host) for host in hosts]
    if len(set(counts)) == 1:
        return None
    return (
        f"the ranks have {counts} addresses, and each must have equally many: give "
        "each host as many `ips` in the host file"
    )


def _neighbour_problem(hosts: Sequence[Sequence[str]], rank: int) -> str | None:
    """Return why this rank can't reach the next one; None if it can."""
    following = hosts[(rank + 1) % len(hosts)]
    for text in following:
        address, _, port = text.partition(":")
        problem = route_problem(address, int(port))
        if problem is not None:
            return problem
    return None


def _connect_nccl(control: Collectives, addresses: Addresses) -> Group:
    with ExitStack() as stack:
        port = agree_on_success(
            control,
            "the reservation of a port",
            lambda: reserve_port(addresses[0][0], stack) if control.rank == 0 else 0,
        )
        root = json.loads(control.all_gather_bytes(json.dumps(port).encode())[0])
        variables = nccl_variables(control.rank, control.size, addresses[0][0], root)
        stack.enter_context(environment.temporary(variables))
        return mx.distributed.init(strict=True, backend="nccl")


def nccl_variables(rank: int, size: int, address: str, port: int) -> dict[str, str]:
    """Return the variables with which MLX's nccl backend finds rank 0."""
    return {
        "NCCL_HOST_IP": address,
        "NCCL_PORT": str(port),
        "MLX_RANK": str(rank),
        "MLX_WORLD_SIZE": str(size),
    }


def _connect_jaccl(control: Collectives, plane: DataPlane) -> Group:
    problem = (
        _table_problem("RDMA devices", len(plane.devices), control.size)
        if plane.devices
        else "nothing names the RDMA devices between the hosts: start the job with "
        "`mlxdist run` and a host file that has `rdma`, as `mlx.distributed_config` "
        "writes it"
    )
    agree(control, "the RDMA devices of the host file", problem=problem)
    with ExitStack() as stack:
        matrix = json.dumps(jaccl_matrix(plane.devices))
        path = stack.enter_context(_private_file(matrix))
        variables = {"JACCL_RANK": str(control.rank), "JACCL_IBV_DEVICES": path}
        stack.enter_context(environment.temporary(variables))
        return mx.distributed.init(
            strict=True, backend="jaccl", all_gather_factory=side_channel(control)
        )


def jaccl_matrix(devices: Sequence[Row]) -> list[list[list[str] | None]]:
    """Return MLX's device matrix: null where no cable is, as from a rank to itself."""
    return [[list(names) or None for names in row] for row in devices]


def side_channel(
    control: Collectives,
) -> Callable[[int, int], Callable[[bytes, int], bytes]]:
    """Return the factory of the all-gather by which jaccl exchanges its addresses.

    Raises:
        MismatchError: MLX's numbers of the ranks are not those of MPI.
    """

    def make(rank: int, size: int) -> Callable[[bytes, int], bytes]:
        if (rank, size) != (control.rank, control.size):
            raise MismatchError(
                f"jaccl has rank {rank} of {size}, and MPI rank {control.rank} of "
                f"{control.size}"
            )
        return lambda data, _: b"".join(control.all_gather_bytes(bytes(data)))

    return make


def _table_problem(name: str, count: int, size: int) -> str | None:
    if count == size:
        return None
    return f"the job has {name} of {count} ranks, and there are {size} ranks"


@contextmanager
def _private_file(text: str) -> Iterator[str]:
    """A file that only this user can read, until this is left."""
    with tempfile.NamedTemporaryFile("w", prefix="mlxdist-", suffix=".json") as file:
        file.write(text)
        file.flush()
        yield file.name
