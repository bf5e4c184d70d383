"""Clocks: measured against rank 0's, and aligned."""

import itertools
import time

import numpy as np
import pytest

from mlxdist.world.clocks import ROUND_TRIPS, Alignment, Offset, first_ranks, measure

# Seconds; many times what a message takes, and little beside the clocks' differences.
LIMIT = 0.1


def test_times_between_two_measurements_are_interpolated():
    first, last = Offset(100.0, 5.0, 2e-6), Offset(200.0, 5.5, 3e-6)
    alignment = Alignment(first, last)
    assert alignment.error == 3e-6
    assert [alignment.on_rank_0(t) for t in (100, 150, 200)] == [95, 144.75, 194.5]
    assert Alignment(first, first).on_rank_0(150.0) == 145


@pytest.fixture
def comm(world):
    from mpi4py import MPI

    comm = MPI.COMM_WORLD.Dup()
    yield comm
    comm.Free()


@pytest.mark.mpi(min_size=2)
def test_clocks_of_one_host_are_the_same_and_nothing_is_sent(comm):
    readers = first_ranks(comm)
    assert readers.tolist() == [0] * comm.Get_size()
    offset = measure(comm, readers)
    assert (offset.ahead, offset.error) == (0.0, 0.0)


@pytest.mark.mpi(min_size=2)
def test_clock_that_is_ahead_is_measured_within_its_error(comm):
    rank, size = comm.Get_rank(), comm.Get_size()
    ahead = 7.25 * rank
    offset = measure(comm, np.arange(size), lambda: time.time() + ahead)
    assert abs(offset.ahead - ahead) <= offset.error + 1e-6
    assert offset.error < LIMIT


@pytest.mark.mpi(min_size=2)
def test_offset_is_that_in_the_middle_of_a_round_trip(comm):
    rank, ticks = comm.Get_rank(), itertools.count()
    clock = (lambda: 10.0) if rank else lambda: float(next(ticks))
    offset = measure(comm, np.arange(comm.Get_size()), clock)
    before = 2 * ROUND_TRIPS * (rank - 1)  # ticks, for the ranks below this one
    expected = (10 - before - 0.5, 0.5) if rank else (0, 0)
    assert (offset.ahead, offset.error) == expected


@pytest.mark.mpi(min_size=3)
def test_ranks_of_one_host_take_the_offset_of_its_first_rank(comm):
    rank, size = comm.Get_rank(), comm.Get_size()
    readers = np.array([0] + [1] * (size - 1))
    clock = {0: time.time}.get(rank, lambda: time.time() - 3)
    offset = measure(comm, readers, clock)
    every = np.empty(size)
    comm.Allgather(np.array([offset.ahead]), every)
    assert every[0] == 0
    assert set(every[1:]) == {every[1]}
    assert abs(every[1] + 3) < LIMIT
