"""Messages between watchdogs over MPI, counted. On all ranks of an SPMD test."""

import os
import threading
import time
from types import SimpleNamespace

import pytest

import mlxdist
from mlxdist.comm.flight_recorder import Recorder
from mlxdist.world.channel import Channel
from mlxdist.world.digest import EndNotice
from mlxdist.world.watchdog import Watchdog


class CountingComm:
    """A communicator that counts the messages which this rank sends."""

    def __init__(self, comm):
        self._comm = comm
        self.sent = 0

    def Isend(self, data, rank):
        self.sent += 1
        return self._comm.Isend(data, rank)

    def __getattr__(self, name):
        return getattr(self._comm, name)


@pytest.fixture
def comm():
    from mpi4py import MPI

    mlxdist.init()
    comm = MPI.COMM_WORLD.Dup()
    yield CountingComm(comm)
    comm.Barrier()
    comm.Free()


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.mpi
def test_watchdog_tick_sends_two_messages_for_each_rank_but_one(comm):
    size = comm.Get_size()
    watchdog = Watchdog(comm, Recorder(), timeout=60.0, host="h", events=None)
    for tick in range(1, 6):
        watchdog.tick()
        comm.Barrier()
        assert comm.allreduce(comm.sent) == tick * 2 * (size - 1)
        assert comm.sent == tick * (size - 1 if comm.Get_rank() == 0 else 1)
    wait_for(lambda: watchdog.tick().job.ranks == size)
    wait_for(lambda: not watchdog.tick().silent(1.0))
    comm.Barrier()
    watchdog.close()


@pytest.mark.mpi(min_size=2)
def test_channel_notice_goes_from_one_rank_to_all_others(comm):
    size, rank = comm.Get_size(), comm.Get_rank()
    channel = Channel(comm)
    if rank == size - 1:
        channel.notify(EndNotice(True, "why"))
        assert comm.sent == size - 1
    else:
        messages = []
        wait_for(lambda: messages.extend(channel.receive()) or messages)
        assert messages == [(size - 1, EndNotice(True, "why"))]
    comm.Barrier()
    channel.close()


@pytest.mark.mpi
def test_watchdog_of_a_process_with_many_files_receives_wake_ups(
    comm, many_descriptors
):
    """`select` takes no descriptor above 1023; the thread ended without a word."""
    woken = threading.Event()
    events = SimpleNamespace(on_sigterm=woken.set)
    watchdog = Watchdog(comm, Recorder(), timeout=60.0, host="h", events=events)
    assert watchdog.wake_fd > 1023
    watchdog.start()
    os.write(watchdog.wake_fd, b"x")
    assert woken.wait(60)
    watchdog.stop()
    comm.Barrier()
    watchdog.close()
