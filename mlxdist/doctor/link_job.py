"""What lies between the ranks: exact sums, each pair's latency and bandwidth, and how
long all of them take to exchange gradients together, as a step does: by itself, and
while they compute.

Run on several ranks by `mlxdist doctor`; rank 0 prints a line of JSON.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

import mlxdist
from mlxdist.comm.collectives import Weights
from mlxdist.comm.exchange import MESSAGE_BYTES
from mlxdist.comm.wire import Wire
from mlxdist.launcher.probe import MARK
from mlxdist.layout.entries import Entry
from mlxdist.layout.sharding import make_plan

_ROUND_TRIPS = 50
_MESSAGES = 8  # in flight, as in the exchange of a step
_SECONDS = 0.5  # of sending, for each pair; and about what an exchange may take
_ENOUGH = 0.05  # seconds of a trip that can be timed
_TENSORS = 4  # of an exchange
_ELEMENTS = 2**20  # float32 in each, or fewer over slow wires
_WIDTH = 256  # of the matrices that are multiplied beside it


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
    """MLX's all-reduce and MPI's, on a quarter of a million whole numbers."""
    own = mx.arange(2**18) + world.rank
    wanted = world.size * mx.arange(2**18) + sum(range(world.size))
    by_mlx = mx.distributed.all_sum(own, group=world.group)
    same = bool(mx.array_equal(by_mlx, wanted).item())
    by_mpi = np.empty(2**18, np.int32)
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

    def trip(nbytes: int) -> float:
        """The slower one's time: both must go on equally long."""
        own, other = np.array(trips(_MESSAGES, nbytes, 1)), np.empty(1)
        comm.Sendrecv(own, peer, recvbuf=other, source=peer)
        return float(max(own[0], other[0]))

    latency = float(np.median(trips(1, 8, _ROUND_TRIPS)))
    nbytes = MESSAGE_BYTES // 64
    while (once := trip(nbytes)) < _ENOUGH and nbytes < MESSAGE_BYTES:
        nbytes *= 4
    # Medians, since other programs get in between.
    taken = trips(_MESSAGES, nbytes, max(5, int(_SECONDS / once)))
    return latency, _MESSAGES * nbytes / float(np.median(taken))


def exchange(world: mlxdist.World, bandwidth: float) -> dict[str, float]:
    """The mean over all ranks of 16 MiB of float32, sums included.

    Args:
        bandwidth: of the slowest pair; less is exchanged where it is low.

    Returns:
        `seconds` of it, of as much `computing`, and of `both`: gradients that are
        computed one after the other, and exchanged meanwhile.
    """
    comm = world.host_transport
    assert comm is not None, "mlxdist run joins MPI"
    sent = 2 * (world.size - 1) / world.size * 4 * _TENSORS * _ELEMENTS
    part = min(1.0, _SECONDS * bandwidth / sent) if sent else 1.0
    elements = max(1024, int(part * _ELEMENTS))
    entries = [Entry(str(index), (elements,), "float32") for index in range(_TENSORS)]
    plan = make_plan(
        entries, world.size, strategy="replicated", bucket_size=4 * elements
    )
    wire = Wire(plan, comm)
    weights = Weights.known(world.rank, [1.0] * world.size)
    paths = [entry.path for bucket in plan.buckets for entry in bucket.entries]

    def reduce(gradients: dict[str, Any]) -> None:
        mx.eval(wire.reduce(gradients, weights).arrays())

    def timed(work: Callable[[dict[str, Any]], None], rounds: int) -> float:
        gradients = computed(paths, elements, rounds)
        if not rounds:
            mx.eval(gradients)
        world.barrier()
        began = time.perf_counter()
        work(gradients)
        return slowest(world, time.perf_counter() - began)

    once, product = (
        min(timed(work, rounds) for _ in range(2)) / products
        for work, rounds, products in ((reduce, 0, 1), (mx.eval, 2, 2 * _TENSORS))
    )
    rounds = max(1, round(once / product / _TENSORS))
    samples = [
        (timed(reduce, 0), timed(mx.eval, rounds), timed(reduce, rounds))
        for _ in range(max(3, min(15, int(2 * _SECONDS / once))))
    ]
    seconds, computing, both = np.median(samples, axis=0).tolist()
    return {
        "buckets": len(plan.buckets),
        "bytes": 4 * _TENSORS * elements,
        "seconds": seconds,
        "computing": computing,
        "both": both,
    }


def computed(paths: Sequence[str], elements: int, rounds: int) -> dict[str, Any]:
    """Gradients as a backward pass gives them, each after so many more products."""
    matrix = mx.full((_WIDTH, _WIDTH), 1 / _WIDTH)
    gradients = {}
    for path in paths:
        for _ in range(rounds):
            matrix = matrix @ matrix
        gradients[path] = mx.ones(elements) + matrix[0, 0]
    return gradients


def slowest(world: mlxdist.World, seconds: float) -> float:
    every = world.control.all_gather_bytes(json.dumps(seconds).encode())
    return max(float(json.loads(one)) for one in every)


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
    slowest_pair = min((one["bandwidth"] for one in pairs_found), default=0.0)
    told = {
        "exact": exact,
        "ranks": world.size,
        "hosts": [name.decode() for name in hosts],
        "pairs": pairs_found,
        "exchange": exchange(world, slowest_pair),
    }
    world.print(MARK + json.dumps(told))


if __name__ == "__main__":
    main()
