"""Jobs that take turns on a virtual cluster, one rank on each host."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from common import ROOT
from common.jobs import FORWARDED, Job
from mlxdist.launcher import openmpi

sys.path.insert(0, os.fspath(ROOT))
from tests.support.cluster import VirtualCluster

__all__ = ["VirtualCluster", "mpi_on_hosts", "plain_mlx_on_hosts", "ring_on_hosts"]

_RING_PORT = 5000


def mpi_on_hosts(
    cluster: VirtualCluster, name: str, script: Path, *arguments: str, **setting: str
) -> Job:
    """A player that mpirun starts on the first host: with an environment of its own.

    What other hosts get is what ssh would leave of it, so it is passed on by name.
    """
    ranks = len(cluster.hosts)
    passed = [word for variable in FORWARDED for word in ("-x", variable)]
    command = cluster.mpirun(
        ranks, _python(script, arguments), environment=setting, arguments=passed
    )
    return Job(name, ranks, [command])


def plain_mlx_on_hosts(
    cluster: VirtualCluster, name: str, script: Path, *arguments: str
) -> Job:
    """The same for MLX over MPI as installed: it is told where libmpi is, no more."""
    library = openmpi.find_libmpi() or ""
    return mpi_on_hosts(cluster, name, script, *arguments, MLX_MPI_LIBNAME=library)


def ring_on_hosts(
    cluster: VirtualCluster, name: str, script: Path, *arguments: str
) -> Job:
    """A player over MLX's ring, whose ranks are started one by one."""
    ring = cluster.folder / f"ring-{name.replace(' ', '-')}.json"
    ring.write_text(json.dumps([[f"{h.address}:{_RING_PORT}"] for h in cluster.hosts]))
    commands = [
        cluster.command(
            _python(script, arguments),
            host=rank,
            environment={"MLX_RANK": str(rank), "MLX_HOSTFILE": str(ring)},
        )
        for rank in range(len(cluster.hosts))
    ]
    return Job(name, len(cluster.hosts), commands)


def _python(script: Path, arguments: Sequence[str]) -> list[str]:
    return [sys.executable, os.fspath(script), *arguments]
