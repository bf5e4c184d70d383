"""Jobs of contenders on a virtual cluster, with one rank on each host."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .environment import ROOT
from .jobs import FORWARDED, Job, upstream_environment

sys.path.insert(0, os.fspath(ROOT))
from tests.support.cluster import VirtualCluster, bits_per_second

__all__ = ["VirtualCluster", "bits_per_second", "cluster_job"]

_RING_PORT = 5000


def cluster_job(
    cluster: VirtualCluster, kind: str, script: Path, *arguments: str
) -> Job:
    """Return a job of one rank per host, which is given its kind and the arguments.

    Args:
        kind: the job's name and what its ranks use: "mlxdist"; "mlxdist-ring", with
            its data over MLX's ring; "mpi", MLX over MPI as installed; or "ring", MLX
            over its ring.
    """
    program = [sys.executable, os.fspath(script), kind, *arguments]
    if kind == "ring":
        return _ring_job(cluster, program)
    library = upstream_environment() if kind == "mpi" else {}
    # Other hosts have the environment of a login by ssh, so mpirun forwards variables.
    forwarded = [word for name in FORWARDED for word in ("-x", name)]
    ranks = len(cluster.hosts)
    command = cluster.mpirun(ranks, program, environment=library, arguments=forwarded)
    return Job(kind, ranks, [command])


def _ring_job(cluster: VirtualCluster, program: Sequence[str]) -> Job:
    """Return a job over MLX's ring, whose ranks are started one by one."""
    ring = cluster.folder / "ring.json"
    ring.write_text(json.dumps([[f"{h.address}:{_RING_PORT}"] for h in cluster.hosts]))
    commands = [
        cluster.command(
            program,
            host=rank,
            environment={"MLX_RANK": str(rank), "MLX_HOSTFILE": str(ring)},
        )
        for rank in range(len(cluster.hosts))
    ]
    return Job("ring", len(cluster.hosts), commands)
