"""What lies between the ranks: exact sums, and each pair's latency and bandwidth.

Run on several ranks by `mlxdist doctor`; rank 0 prints a line of JSON.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np

import mlxdist
from mlxdist.exchange import MESSAGE_BYTES
from mlxdist.probe import MARK

_ROUND_TRIPS = 50
_MESSAGES = 8  # in flight, as in the exchange of a step
_SECONDS = 0.5  # of sending, for each pair


def pairings(size: int) -> Iterator[list[tuple[int, int]]]:
    """Each pair of ranks once, in rounds in which no rank is in two pairs.

    The circle method of tournaments: size - 1 rounds, one more where size is odd.
    """
    seats: list[int | None] = [*range(size), *([None] * (size % 2))]
    for _ in range(len(seats) - 1):
        half = len(seats) // 2
        faced = zip(seats[:half], reversed(seats[half:]), strict=True)
        yield [
            (min(a, b), max(a, b)) for a, b in faced if a is not None and b is not None
        ]
        seats = [seats[0], seats[-1], *seats[1:-1]]


def sums_are_exact(world: mlxdist.World, comm: Any) -> bool:
    """MLX's all-reduce and MPI's, on a million whole numbers."""
    own = mx.arange(2**20) + world.rank
    wanted = world.size * mx.arange(2**20) + sum(range(world.size))
    by_mlx = mx.distributed.all_sum(own, group=world.group)
    same = bool(mx.array_equal(by_mlx, wanted).item())
    by_mpi = np.empty(2**20, np.int32)
    comm.Allreduce(np.array(own), by_mpi)
    return same and bool((by_mpi == np.array(wanted)).all())


def measure(comm: Any, peer: int) -> tuple[float, float]:
    """One pair's one-way latency in seconds, and bytes a second each way at once."""
    from mpi4py import MPI

    def trips(messages: int, nbytes: int, times: int) -> list[float]:
        out = np.ones((messages, nbytes), np.uint8)
        back = np.empty_like(out)
        taken = []
        for _ in range(times):
            began = time.perf_counter()
            arriving = [comm.Irecv([one, MPI.BYTE], peer) for one in back]
            leaving = [comm.Isend([one, MPI.BYTE], peer) for one in out]
            MPI.Request.Waitall(arriving + leaving)
            taken.append(time.perf_counter() - began)
        return taken

    latency = float(np.median(trips(1, 8, _ROUND_TRIPS)))
    first = np.array([min(trips(_MESSAGES, MESSAGE_BYTES, 3))])
    comm.Sendrecv(first, peer, recvbuf=(other := np.empty(1)), source=peer)
    # Both must go on equally long. Medians, since other programs get in between.
    times = max(5, int(_SECONDS / max(first[0], other[0])))
    taken = trips(_MESSAGES, MESSAGE_BYTES, times)
    return latency, _MESSAGES * MESSAGE_BYTES / float(np.median(taken))


def main() -> None:
    world = mlxdist.init(timeout=60)
    from mpi4py import MPI

    comm = MPI.COMM_WORLD.Dup()
    exact = world.mean(float(sums_are_exact(world, comm))) == 1
    own: list[tuple[int, int, float, float]] = []
    for pairs in pairings(world.size):
        for a, b in pairs:
            if world.rank in (a, b):
                latency, bandwidth = measure(comm, a + b - world.rank)
                if world.rank == a:
                    own.append((a, b, latency, bandwidth))
        world.barrier()
    found = world.control.all_gather_bytes(json.dumps(own).encode())
    hosts = world.control.all_gather_bytes(world.host.encode())
    pairs_found = [
        {"ranks": [a, b], "latency": latency, "bandwidth": bandwidth}
        for part in found
        for a, b, latency, bandwidth in json.loads(part)
    ]
    told = {
        "exact": exact,
        "ranks": world.size,
        "hosts": [name.decode() for name in hosts],
        "pairs": pairs_found,
    }
    world.print(MARK + json.dumps(told))


if __name__ == "__main__":
    main()
