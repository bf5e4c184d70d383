"""The job of `mlxdist doctor` on each rank: exact sums and the speed of the links.

It measures each pair's latency and bandwidth, and the all-reduce of gradients among all
ranks, alone and during computation. Rank 0 prints a line of JSON: see LinkReport.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from ..arrays.types import Flat
from ..comm.reduction import Weights
from ..comm.wire import Wire
from ..launcher.probe import MARK
from ..layout import Entry, KeyPath, make_plan
from ..world import World, init
from .reports import ExchangeReport, LinkReport, PairReport

if TYPE_CHECKING:
    from mpi4py import MPI

_ROUND_TRIPS = 50
_MESSAGES = 8  # in flight, as in the exchange of a step
_MESSAGE_BYTES = 2**20  # of the longest message
_SECONDS = 0.5  # of sending for each pair, and roughly the longest all-reduce
_MEASURABLE = 0.05  # seconds of a transfer that the clock resolves well enough
_TENSORS = 4  # in the all-reduce
_ELEMENTS = 2**20  # float32 in each tensor; fewer over slow links
_WIDTH = 256  # of the matrices that are multiplied during the all-reduce

Work = Callable[[Flat], None]


def pairings(size: int) -> Iterator[list[tuple[int, int]]]:
    """Yield rounds of disjoint pairs of ranks, in which each pair occurs once.

    This is the circle method of round-robin tournaments: size - 1 rounds, or size
    rounds if size is odd.
    """
    seats: list[int | None] = [*range(size), *([None] * (size % 2))]
    for _ in range(len(seats) - 1):
        half = len(seats) // 2
        opposite = zip(seats[:half], reversed(seats[half:]), strict=True)
        yield [
            (min(a, b), max(a, b))
            for a, b in opposite
            if a is not None and b is not None
        ]
        seats = [seats[0], seats[-1], *seats[1:-1]]


def sums_are_exact(world: World, comm: MPI.Comm) -> bool:
    """Return whether MLX and MPI sum 2**18 integers over the ranks exactly."""
    local = mx.arange(2**18) + world.rank
    expected = world.size * mx.arange(2**18) + sum(range(world.size))
    by_mlx = mx.distributed.all_sum(local, group=world.group)
    mlx_is_exact = bool(mx.array_equal(by_mlx, expected).item())
    by_mpi = np.empty(2**18, np.int32)
    comm.Allreduce(np.array(local), by_mpi)
    return mlx_is_exact and bool((by_mpi == np.array(expected)).all())


def measure_pairs(world: World, comm: MPI.Comm) -> list[PairReport]:
    """Measure the links between all pairs of ranks; every rank returns all of them."""
    local: list[PairReport] = []
    for pairs in pairings(world.size):
        for a, b in pairs:
            if world.rank in (a, b):
                latency, bandwidth = measure_pair(comm, a + b - world.rank)
                if world.rank == a:
                    pair = PairReport(
                        ranks=[a, b], latency=latency, bandwidth=bandwidth
                    )
                    local.append(pair)
        world.barrier()
    everyone = world.control.all_gather_bytes(json.dumps(local).encode())
    return [pair for some in everyone for pair in json.loads(some)]


def measure_pair(comm: MPI.Comm, peer: int) -> tuple[float, float]:
    """Measure the link to a peer, which calls this, too.

    Returns:
        One-way latency in seconds, and bytes per second in each direction, with both
        directions in use.
    """
    latency = float(np.median(_transfer(comm, peer, 1, 8, _ROUND_TRIPS)))
    nbytes = _MESSAGE_BYTES // 64
    seconds = _slower_transfer(comm, peer, nbytes)
    while seconds < _MEASURABLE and nbytes < _MESSAGE_BYTES:
        nbytes *= 4
        seconds = _slower_transfer(comm, peer, nbytes)
    times = max(5, int(_SECONDS / seconds))
    # The median, since other programs may delay a transfer.
    seconds = float(np.median(_transfer(comm, peer, _MESSAGES, nbytes, times)))
    return latency, _MESSAGES * nbytes / seconds


def _transfer(
    comm: MPI.Comm, peer: int, messages: int, nbytes: int, times: int
) -> list[float]:
    """Exchange messages of `nbytes` with a peer; return the seconds of each time."""
    from mpi4py import MPI

    out = np.ones((messages, nbytes), np.uint8)
    into = np.empty_like(out)
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        receives = [comm.Irecv([message, MPI.BYTE], peer) for message in into]
        sends = [comm.Isend([message, MPI.BYTE], peer) for message in out]
        MPI.Request.Waitall(receives + sends)
        seconds.append(time.perf_counter() - start)
    return seconds


def _slower_transfer(comm: MPI.Comm, peer: int, nbytes: int) -> float:
    """Return the longer of both ranks' times, so that both decide alike by it."""
    local = np.array(_transfer(comm, peer, _MESSAGES, nbytes, 1))
    remote = np.empty(1)
    comm.Sendrecv(local, peer, recvbuf=remote, source=peer)
    return float(max(local[0], remote[0]))


def measure_exchange(world: World, bandwidth: float) -> ExchangeReport:
    """Measure the mean of 16 MiB of float32 over all ranks, alone and with computation.

    The computation takes about as long as the all-reduce. It computes the gradients
    one after the other, as a backward pass does, so that they are sent meanwhile.

    Args:
        bandwidth: of the slowest pair; if it is low, less than 16 MiB is sent.
    """
    exchange = _Exchange(world, _elements(world.size, bandwidth))
    products = 2 * _TENSORS
    seconds = min(exchange.time(exchange.reduce, 0) for _ in range(2))
    per_product = min(exchange.time(mx.eval, 2) for _ in range(2)) / products
    rounds = max(1, round(seconds / per_product / _TENSORS))
    samples = [
        (
            exchange.time(exchange.reduce, 0),
            exchange.time(mx.eval, rounds),
            exchange.time(exchange.reduce, rounds),
        )
        for _ in range(max(3, min(15, int(2 * _SECONDS / seconds))))
    ]
    seconds, computing, both = np.median(samples, axis=0).tolist()
    return {
        "buckets": len(exchange.plan.buckets),
        "bytes": 4 * _TENSORS * exchange.elements,
        "seconds": seconds,
        "computing": computing,
        "both": both,
    }


def _elements(ranks: int, bandwidth: float) -> int:
    """Return the size of a tensor whose all-reduce takes about _SECONDS at most."""
    nbytes = 2 * (ranks - 1) / ranks * 4 * _TENSORS * _ELEMENTS
    part = min(1.0, _SECONDS * bandwidth / nbytes) if nbytes else 1.0
    return max(1024, int(part * _ELEMENTS))


class _Exchange:
    """The all-reduce of equal tensors, with a bucket for each."""

    def __init__(self, world: World, elements: int):
        comm = world.host_transport
        assert comm is not None, "mlxdist run joins MPI"
        shape = (elements,)
        entries = [
            Entry(KeyPath((index,)), shape, "float32") for index in range(_TENSORS)
        ]
        self.world = world
        self.elements = elements
        self.plan = make_plan(
            entries, world.size, strategy="replicated", bucket_size=4 * elements
        )
        self._wire = Wire(self.plan, comm)
        self._weights = Weights.known(world.rank, [1.0] * world.size)

    def reduce(self, gradients: Flat) -> None:
        """Average the gradients over the ranks."""
        mx.eval(self._wire.reduce(dict(gradients), self._weights).arrays())

    def time(self, work: Work, rounds: int) -> float:
        """Return the slowest rank's seconds to work on gradients.

        Args:
            rounds: matrix products before each gradient; with 0, gradients are ready.
        """
        buckets = self.plan.buckets
        paths = [entry.path for bucket in buckets for entry in bucket.entries]
        gradients = lazy_gradients(paths, self.elements, rounds)
        if not rounds:
            mx.eval(gradients)
        self.world.barrier()
        start = time.perf_counter()
        work(gradients)
        return slowest(self.world, time.perf_counter() - start)


def lazy_gradients(paths: Sequence[KeyPath], elements: int, rounds: int) -> Flat:
    """Return unevaluated gradients, each computed after `rounds` more matrix products.

    Returns:
        path -> array of shape (elements,), float32.
    """
    matrix = mx.full((_WIDTH, _WIDTH), 1 / _WIDTH)
    gradients = {}
    for path in paths:
        for _ in range(rounds):
            matrix = matrix @ matrix
        gradients[path] = mx.ones(elements) + matrix[0, 0]
    return gradients


def slowest(world: World, seconds: float) -> float:
    """Return the largest of all ranks' seconds."""
    words = np.array([seconds]).view(np.uint64)
    return float(world.control.all_gather_words(words).view(np.float64).max())


def main() -> None:
    world = init(timeout=60)
    from mpi4py import MPI

    comm = MPI.COMM_WORLD.Dup()
    exact = world.mean(float(sums_are_exact(world, comm))) == 1
    pairs = measure_pairs(world, comm)
    hosts = world.control.all_gather_bytes(world.host.encode())
    bandwidth = min((pair["bandwidth"] for pair in pairs), default=0.0)
    report: LinkReport = {
        "exact": exact,
        "ranks": world.size,
        "hosts": [name.decode() for name in hosts],
        "pairs": pairs,
        "exchange": measure_exchange(world, bandwidth),
    }
    world.print(MARK + json.dumps(report))


if __name__ == "__main__":
    main()
