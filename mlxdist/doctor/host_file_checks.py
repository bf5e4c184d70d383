"""Checks of a host file alone, whether or not its hosts can be reached."""

from __future__ import annotations

from collections.abc import Iterator

from ..launcher import data_plane, device_matrix
from ..launcher.hosts import HostList
from .finding import Finding, Level
from .mac_checks import FAST_SYNCH, FAST_SYNCH_PROBLEM


def check_devices(named: HostList) -> Iterator[Finding]:
    """Require a mesh or a ring of RDMA devices where jaccl is used.

    The launcher refuses the first problem; here are all.
    """
    uses_jaccl = named.backend in data_plane.JACCL
    if not uses_jaccl and not any(host.devices for host in named.hosts):
        return
    names = [host.name for host in named.hosts]
    rows = [host.devices for host in named.hosts]
    ring = named.backend == data_plane.RING_OF_JACCL
    problems = list(device_matrix.problems(names, rows, ring=ring))
    level: Level = "failure" if uses_jaccl else "warning"
    for problem in problems:
        yield Finding("host file", problem, level, device_matrix.REMEDY)
    if not problems and len(names) > 1:
        yield Finding("host file", f"RDMA between {len(names)} hosts")


def check_backend(named: HostList) -> Iterator[Finding]:
    """Name the backend for data, which no check of links uses."""
    if named.backend not in (None, "mpi"):
        message = f"data goes over {named.backend}; links are measured over MPI, the "
        message += "control plane. mlxdist test trains over both"
        yield Finding("host file", message)


def check_variables(named: HostList) -> Iterator[Finding]:
    """Warn of MLX_METAL_FAST_SYNCH, which MLX calls unreliable (MLX #3142, #4005)."""
    if dict(named.variables).get(FAST_SYNCH, "0") != "0":
        message = f"{FAST_SYNCH} is set in envs: {FAST_SYNCH_PROBLEM}"
        yield Finding("host file", message, "warning", "remove it from envs")
