"""Clocks of the hosts: by how much each is ahead of rank 0's, and how that changes.

Ranks of one host read the same clock. Between hosts it is measured with messages to and
from rank 0. The other host reads its clock between the times at which rank 0 sends and
receives, so the error is at most half of a round trip, and the shortest of several
counts (Cristian, "Probabilistic clock synchronization", 1989; NTP does the same). Two
clocks drift by some microseconds a second: a second measurement at the end of the job
gives the times in between by interpolation.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mpi4py import MPI

ROUND_TRIPS = 40

Clock = Callable[[], float]


@dataclass(frozen=True)
class Offset:
    """By how much a clock is ahead of rank 0's, all in seconds.

    Attributes:
        time: of the measurement, on the clock itself.
        error: what `ahead` may be off by, in either direction.
    """

    time: float
    ahead: float
    error: float


@dataclass(frozen=True)
class Alignment:
    """Times of one rank's clock as times of rank 0's.

    Attributes:
        first, last: measurements; the same one before there is a second.
    """

    first: Offset
    last: Offset

    @property
    def error(self) -> float:
        """What times may be off by, in seconds, apart from a clock that was set."""
        return max(self.first.error, self.last.error)

    def on_rank_0(self, local: float) -> float:
        """Return what rank 0's clock shows when this one shows `local`."""
        first, last = self.first, self.last
        duration = last.time - first.time
        part = (local - first.time) / duration if duration > 0 else 0.0
        return local - first.ahead - part * (last.ahead - first.ahead)


def same_clock(now: float = 0.0) -> Offset:
    """Return the offset of a rank on rank 0's host."""
    return Offset(now, 0.0, 0.0)


def first_ranks(comm: MPI.Comm) -> NDArray[np.int64]:
    """Return the first rank on each rank's host. All ranks call it."""
    from mpi4py import MPI

    on_host = comm.Split_type(MPI.COMM_TYPE_SHARED)
    first = np.array([comm.Get_rank()], np.int64)
    on_host.Bcast(first)
    on_host.Free()
    every = np.empty(comm.Get_size(), np.int64)
    comm.Allgather(first, every)
    return every


def measure(
    comm: MPI.Comm, readers: NDArray[np.int64], clock: Clock = time.time
) -> Offset:
    """Measure by how much this rank's clock is ahead of rank 0's. All ranks call it.

    Sends 40 messages of 8 bytes in each direction to each other host, in turn.

    Args:
        readers: for each rank, the one that reads its host's clock: `first_ranks`.
    """
    rank = comm.Get_rank()
    offsets = np.zeros((comm.Get_size(), 2))
    for reader in sorted(set(readers.tolist()) - {0}):
        if rank == 0:
            offsets[reader] = _ask(comm, reader, clock)
        elif rank == reader:
            _answer(comm, clock)
    comm.Bcast(offsets)
    ahead, error = offsets[readers[rank]].tolist()
    return Offset(clock(), ahead, error)


def _ask(comm: MPI.Comm, reader: int, clock: Clock) -> tuple[float, float]:
    """Return by how much a rank's clock is ahead, and the error."""
    buffer, ahead, shortest = np.empty(1), 0.0, float("inf")
    for _ in range(ROUND_TRIPS):
        sent = clock()
        comm.Send(buffer, reader)
        comm.Recv(buffer, reader)
        received = clock()
        if received - sent < shortest:
            shortest = received - sent
            ahead = float(buffer[0]) - (sent + received) / 2
    return ahead, shortest / 2


def _answer(comm: MPI.Comm, clock: Clock) -> None:
    buffer = np.empty(1)
    for _ in range(ROUND_TRIPS):
        comm.Recv(buffer, 0)
        buffer[0] = clock()
        comm.Send(buffer, 0)
